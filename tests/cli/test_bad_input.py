"""What users get wrong, end to end in a process of its own: exit code, one sentence, a hint, nothing left behind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PROGRAM = (sys.executable, "-m", "edgeforge.cli")


def run(*arguments: str | Path, program: Sequence[str] = PROGRAM) -> subprocess.CompletedProcess[str]:
    command = [*program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The sentence of a command that must have failed with `code`."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint: "), done.stderr
    return sentences[0]


def build(model: str | Path, out: Path, *more: str, target: str = "cpu") -> subprocess.CompletedProcess[str]:
    return run("build", "--target", target, "--model", model, "--out", out, "--no-validate", *more)


@pytest.fixture(scope="module")
def bundle(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "stories"
    done = build(stories, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def damaged(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "damaged")


def test_an_unknown_target_suggests_the_nearest(tmp_path: Path) -> None:
    sentence = refused(build("demo", tmp_path / "out", target="rtx4900"), 3)
    assert "'rtx4900'" in sentence
    assert "did you mean 'rtx4090'?" in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["./no/such/model", "model.gguf", "no such model"])
def test_no_such_model(model: str, tmp_path: Path) -> None:
    assert model in refused(build(model, tmp_path / "out"), 3)
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_model_is_refused_by_name(stories: Path, tmp_path: Path) -> None:
    model = shutil.copytree(stories, tmp_path / "bert")
    config = {"architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12}
    (model / "config.json").write_text(json.dumps(config))
    assert "bert" in refused(build(model, tmp_path / "out"), 3).lower()
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_a_truncated_shard_is_named(stories: Path, tmp_path: Path) -> None:
    model = shutil.copytree(stories, tmp_path / "model")
    shard = model / "model.safetensors"
    os.truncate(shard, shard.stat().st_size - 1000)
    assert "model.safetensors" in refused(build(model, tmp_path / "out"), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_output_folder_that_exists_is_not_touched(stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert "exists" in refused(build(stories, out), 2)
    assert "not a bundle" in refused(build(stories, out, "--force"), 2)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_force_replaces_a_bundle(stories: Path, damaged: Path) -> None:
    (damaged / "model" / "stray.bin").write_bytes(b"x")
    done = build(stories, damaged, "--force")
    assert done.returncode == 0, done.stderr
    assert run("verify", damaged).returncode == 0
    assert [path.name for path in damaged.parent.iterdir()] == [damaged.name]


@pytest.mark.parametrize("command", ["verify", "run", "bench"])
def test_a_corrupted_bundle_names_the_file(command: str, damaged: Path) -> None:
    config = damaged / "model" / "genai_config.json"
    config.write_bytes(config.read_bytes().replace(b"{", b"[", 1))
    more = ["Hello"] if command == "run" else []
    assert "model/genai_config.json" in refused(run(command, damaged, *more), 6)


def test_an_extra_and_a_missing_file_are_corruption_too(damaged: Path) -> None:
    (damaged / "model" / "stray.bin").write_bytes(b"x")
    assert "model/stray.bin" in refused(run("verify", damaged), 6)
    (damaged / "model" / "stray.bin").unlink()
    (damaged / "NOTICE").unlink()
    assert "NOTICE" in refused(run("verify", damaged), 6)


def test_what_is_no_bundle_is_unusable(tmp_path: Path) -> None:
    for command, more in (("verify", []), ("run", ["Hello"]), ("chat", []), ("bench", [])):
        assert "not a bundle" in refused(run(command, tmp_path, *more), 3)


def test_without_onnxruntime_the_pip_command_is_given(stories: Path, bundle: Path, tmp_path: Path) -> None:
    hide = "import sys; sys.modules['onnxruntime'] = None; from edgeforge.cli import main; main()"
    program = (sys.executable, "-c", hide)
    out = tmp_path / "out"
    done = run("build", "--target", "cpu", "--model", stories, "--out", out, program=program)
    assert "onnxruntime" in refused(done, 7)
    assert "pip install" in done.stderr
    assert not out.exists()
    done = run("run", bundle, "Hello", program=program)
    assert "onnxruntime" in refused(done, 7)
    assert "pip install" in done.stderr


def test_json_prints_one_object_and_nothing_else(stories: Path, tmp_path: Path) -> None:
    done = build(stories, tmp_path / "out", "--json")
    document = json.loads(done.stdout)
    assert done.stderr == ""
    assert document["bundle"] == str(tmp_path / "out")
    assert document["size_bytes"] == sum(
        file["size"] for file in json.loads((tmp_path / "out" / "manifest.json").read_text())["files"].values()
    )
    assert document["validation"] is None


def test_a_dry_run_writes_nothing(stories: Path, tmp_path: Path) -> None:
    done = build(stories, tmp_path / "out", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["memory_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


# As when another program fills the disk after the space was checked.
UNAWARE = """
import shutil
plenty = type(shutil.disk_usage("/"))(1 << 60, 0, 1 << 60)
shutil.disk_usage = lambda path: plenty
from edgeforge.cli import main
main()
"""


@pytest.mark.parametrize(
    ("program", "sentence"), [(PROGRAM, "MB free"), ((sys.executable, "-c", UNAWARE), "no space left on the disk")]
)
def test_a_full_disk_is_told_before_the_work_or_when_it_happens(
    program: tuple[str, ...], sentence: str, stories: Path, tmp_path: Path
) -> None:
    """On a tmpfs of 200 kB, mounted in a user namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=200k tmpfs {disk} && "$@"; code=$?; ls -A {disk} > {tmp_path}/left; exit $code'
    inside = ("unshare", "-rm", "sh", "-c", script, "sh")
    if shutil.which("unshare") is None or run("true", program=inside).returncode:
        pytest.skip("this system lets nobody mount a tmpfs")
    arguments = ["build", "--target", "cpu", "--model", str(stories), "--out", str(disk / "out"), "--no-validate"]
    assert sentence in refused(run(*arguments, program=(*inside, *program)), 8)
    assert (tmp_path / "left").read_text() == ""
