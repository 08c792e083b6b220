"""The boundary: one sentence, one hint, the right exit code, never a traceback that nobody asked for."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

from edgeforge import errors
from edgeforge.cli.console import Failure, Terminated, coloured, emit_json, explain, run_guarded
from edgeforge.runtime.errors import CorruptBundle, MissingRequirement, UnusableBundle


def command_raising(error: BaseException) -> click.Command:
    def callback() -> None:
        raise error

    return click.Command(
        "work", callback=callback, params=[click.Option(["--debug"], is_flag=True, expose_value=False)]
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("m"), 2),
        (errors.UnusableInput("m"), 3),
        (errors.DoesNotFit("m"), 4),
        (errors.GateFailed("m"), 5),
        (errors.IntegrityError("m"), 6),
        (errors.MissingDependency("m"), 7),
        (errors.OutOfResources("m"), 8),
        (errors.Interrupted("m"), 130),
        (UnusableBundle("m"), 3),
        (CorruptBundle("m"), 6),
        (MissingRequirement("m"), 7),
        (KeyboardInterrupt(), 130),
        (Terminated(signal.SIGTERM), 143),
        (click.Abort(), 130),
        (click.UsageError("m"), 2),
        (MemoryError(), 8),
        (OSError(errno.ENOSPC, "No space left on device", "model.onnx.data"), 8),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 8),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 3),
        (ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime.capi"), 7),
        (ModuleNotFoundError("No module named 'edgeforge.gone'", name="edgeforge.gone"), 1),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 1),
        (KeyError("layers"), 1),
    ],
)
def test_every_cause_has_its_exit_code(error: BaseException, code: int) -> None:
    assert explain(error).exit_code == code
    assert run_guarded(command_raising(error), []) == code


def test_an_error_is_a_sentence_and_a_hint_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    run_guarded(command_raising(errors.UnusableInput("there is no target 'cpx'", hint="did you mean cpu?")), [])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: there is no target 'cpx'\nhint: did you mean cpu?\n"


def test_a_traceback_comes_only_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    run_guarded(command_raising(KeyError("layers")), [])
    assert "Traceback" not in capsys.readouterr().err
    run_guarded(command_raising(KeyError("layers")), ["--debug"])
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "this is a bug in EdgeForge: KeyError: 'layers'" in err


def test_a_full_disk_names_the_file_and_the_cure() -> None:
    failure = explain(OSError(errno.ENOSPC, "No space left on device", "/out/model.onnx.data"))
    assert failure.message == "no space left on the disk: /out/model.onnx.data"
    assert failure.hint is not None
    assert "--out" in failure.hint


def test_what_work_is_kept_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def command() -> None:
        error = RuntimeError("odd")
        error.add_note("3 of 4 are done")
        raise error

    assert run_guarded(command, []) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: this is a bug in EdgeForge: RuntimeError: odd"
    assert lines[-1] == "3 of 4 are done"


def test_a_missing_package_comes_with_its_pip_command() -> None:
    failure = explain(ModuleNotFoundError("", name="onnxruntime"))
    assert failure == Failure(
        exit_code=7,
        message="the Python package onnxruntime is not installed",
        hint="python -m pip install onnxruntime",
    )


def test_json_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="JSON"):
        emit_json({"perplexity": float("nan")})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_colour_is_for_terminals_and_respects_no_color(
    environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert coloured(Terminal()) is expected
    assert coloured(object()) is False


def script(body: str) -> list[str]:
    """A process that runs `body` as the one command of a guarded program."""
    head = """
    import sys, time, click
    from pathlib import Path
    from edgeforge.cli.console import run_guarded
    """
    tail = "sys.exit(run_guarded(click.Command('work', callback=work), []))"
    return [sys.executable, "-c", "\n".join([textwrap.dedent(head), textwrap.dedent(body), tail])]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_unwinds_and_cleans_up(number: signal.Signals, code: int, tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    body = f"""
    def work():
        staging = Path({str(staging)!r})
        staging.mkdir()
        try:
            print("ready", flush=True)
            time.sleep(30)
        finally:
            staging.rmdir()
    """
    with subprocess.Popen(script(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert "nothing was left behind" in err
    assert "Traceback" not in err
    assert not staging.exists()


def test_a_reader_that_leaves_is_no_error() -> None:
    body = """
    def work():
        for number in range(200_000):
            click.echo(f"line {number}")
    """
    with subprocess.Popen(script(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=20)
    assert err == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_results_that_do_not_fit_on_the_disk_are_exit_8() -> None:
    body = """
    def work():
        click.echo("a result")
    """
    with open("/dev/full", "w") as full:
        done = subprocess.run(script(body), stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=20)
    assert done.returncode == 8
    assert done.stderr.startswith("error: no space left on the disk")


def test_a_small_locale_does_not_end_the_work() -> None:
    body = """
    def work():
        click.echo("loss ≤ 0.3")
    """
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(script(body), capture_output=True, env=environment, check=False, timeout=20)
    assert (done.returncode, done.stdout) == (0, b"loss ? 0.3\n")
