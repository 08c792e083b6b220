"""`edgeforge serve` as a program: it says where it is, ends in order, and names what is in its way."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeforge.cli.serve import serve

SERVE = [sys.executable, "-m", "edgeforge.cli", "serve"]


@contextmanager
def serving(bundle: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The program, its address, and what it said on stderr before that."""
    command = [*SERVE, str(bundle), "--port", "0", "--threads", "1", *options]
    program = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert program.stderr is not None
    said: list[str] = []
    try:
        for line in program.stderr:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                yield program, found[0], said
                return
        pytest.fail(f"no address: {said}")
    finally:
        program.kill()
        program.communicate()


def post(url: str, *, key: str = "none", tokens: int = 300) -> urllib.request.Request:
    """For a streamed answer of so many tokens, about 2 ms each."""
    body = json.dumps({"prompt": "Hello", "max_tokens": tokens, "temperature": 0, "stream": True}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    return urllib.request.Request(f"{url}/v1/completions", data=body, headers=headers)


def refused(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SERVE, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_the_door_and_the_running_stream_comes_to_its_end(tiny: Path, number: signal.Signals) -> None:
    with serving(tiny) as (program, url, _), urllib.request.urlopen(post(url), timeout=30) as answer:
        answer.readline()
        program.send_signal(number)
        lines = answer.read().decode().split("\n\n")
        _, log = program.communicate(timeout=30)
        assert lines[-2] == "data: [DONE]"
        assert json.loads(lines[-3].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert program.returncode == 0
        assert "stopping: 1 answers are being finished" in log


def test_a_second_ctrl_c_ends_at_once(tiny: Path) -> None:
    with serving(tiny) as (program, url, _), urllib.request.urlopen(post(url, tokens=4000), timeout=30) as answer:
        answer.readline()
        program.send_signal(signal.SIGINT)
        assert program.stderr is not None
        assert any("stopping" in line for line in program.stderr)
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=10)
        try:
            rest = answer.read()
        except http.client.IncompleteRead as cut:
            rest = cut.partial
        assert b'"finish_reason":"length"' not in rest, "an answer that was cut off does not look complete"


def test_the_key_comes_from_the_environment_too(tiny: Path) -> None:
    with serving(tiny, EDGEFORGE_API_KEY="secret") as (_, url, _said):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(post(url), timeout=30)
        with urllib.request.urlopen(post(url, key="secret"), timeout=30) as answer:
            assert answer.readline().startswith(b"data: ")


def test_a_server_that_others_can_reach_without_a_key_warns(tiny: Path) -> None:
    with serving(tiny, "--host", "0.0.0.0") as (_, _url, said):
        assert said[0].startswith("warning: whoever reaches 0.0.0.0 may ask")


def test_a_port_that_is_taken_is_one_sentence(tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = refused(str(tiny), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert re.fullmatch(r"error: cannot listen at 127.0.0.1 port \d+: .*\nhint: .*--port.*\n", done.stderr)


def test_what_is_no_bundle_is_told_as_everywhere(tmp_path: Path) -> None:
    done = refused(str(tmp_path), "--port", "0")
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")


def test_without_its_packages_it_says_how_to_install_them(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'uvicorn' else found(name, *rest)\n"
    )
    done = refused(str(tiny), PYTHONPATH=str(tmp_path))
    assert done.returncode == 7
    assert done.stderr == "error: `edgeforge serve` needs uvicorn\nhint: python -m pip install 'edgeforge[serve]'\n"


@pytest.mark.parametrize("size", ["many", "4 TB", "-1", "1.5.5MB"])
def test_a_size_that_is_none_is_a_usage_error(tiny: Path, size: str) -> None:
    done = CliRunner().invoke(serve, [str(tiny), f"--max-body={size}"])
    assert done.exit_code == 2
    assert "is not a size" in done.output


@pytest.mark.parametrize("key", ["", "two words", "schlüssel"])
def test_a_key_that_no_header_carries_is_a_usage_error(tiny: Path, key: str) -> None:
    done = CliRunner().invoke(serve, [str(tiny), "--api-key", key])
    assert done.exit_code == 2
    assert "printable ASCII" in done.output
