"""A bundle with its engine, and one whose engine is left to the device: both whole, both saying what they are."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from built import quiet

from edgeforge.errors import MissingDependency, OutOfResources, UsageError
from edgeforge.hardware import load_target
from edgeforge.pipeline import BuildOptions, BuildResult, build, prepare, prepare_all, resolve_target
from edgeforge.runtime import load, verify
from edgeforge.runtime.errors import MissingRequirement
from tests.backends.fake_trtllm import Environment, gpu, install


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """TensorRT-LLM 1.2.1 on a machine with an H100, not on the PATH."""
    gpu(monkeypatch, tmp_path, "9.0")
    return install(tmp_path / "venv")


def options(stories: Path, out: Path, **changes: object) -> BuildOptions:
    target = resolve_target(load_target("h100"), backend="trtllm-engine", context=512, batch=2)
    asked = BuildOptions(target=target, model=str(stories), out=out, validate=False)
    return replace(asked, **changes)  # type: ignore[arg-type]


def test_a_bundle_with_its_engine_keeps_the_checkpoint_and_the_log(
    stories: Path, tmp_path: Path, environment: Environment
) -> None:
    said: list[str] = []
    result = build(
        options(stories, tmp_path / "out", trtllm_python=environment.python, validate=True, chunks=1),
        progress=quiet,
        log=said.append,
    )
    manifest = verify(result.bundle, "full")
    engine = manifest.engine
    assert engine is not None
    assert (engine.name, engine.state, engine.compute_capability, engine.script) == ("tensorrt", "ready", "9.0", None)
    assert engine.versions == {
        "tensorrt_llm": "1.2.1",
        "tensorrt": "10.14.1.48",
        "cuda": "12.9",
        "driver": "580.65.06",
    }
    roles = {path: manifest.files[path].role for path in ("engine/rank0.engine", "model/rank0.safetensors")}
    assert roles == {"engine/rank0.engine": "engine", "model/rank0.safetensors": "weights"}
    assert "engine/config.json" in manifest.files and "build-on-device.sh" not in manifest.files
    assert not manifest.determinism.reproducible
    assert (result.bundle / "reports/trtllm-build.log").read_text().splitlines() == said
    assert result.validation is not None and 0 < result.validation.mean_kl_divergence < 0.1


@pytest.mark.parametrize(
    ("target", "backend", "name"),
    [
        ("h100", "trtllm-engine", "tensorrt"),
        ("h100", "tensorrt-llm", "tensorrt"),
        ("jetson-thor", "modelopt", "edge-llm"),
    ],
)
def test_a_bundle_without_its_engine_has_the_script(
    stories: Path, tmp_path: Path, target: str, backend: str, name: str
) -> None:
    resolved = resolve_target(load_target(target), backend=backend, scheme="fp8", context=512, batch=1)
    result = built(options(stories, tmp_path / "out", target=resolved))
    engine = verify(result.bundle, "full").engine
    assert engine is not None
    assert (engine.name, engine.state, engine.script) == (name, "to-be-built", "build-on-device.sh")
    assert result.manifest.files["build-on-device.sh"].role == "script"
    script = result.bundle / "build-on-device.sh"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    with pytest.raises(MissingRequirement, match=r"still to be built|runtime is a C") as refused:
        load(result.bundle).open()
    assert f"sh {script}" in (refused.value.hint or "")


def built(asked: BuildOptions) -> BuildResult:
    return build(asked, progress=quiet)


def test_two_builds_with_a_script_are_byte_identical(stories: Path, tmp_path: Path) -> None:
    first, again = (built(options(stories, tmp_path / name)) for name in ("one", "two"))
    assert first.manifest == again.manifest


@pytest.mark.parametrize(("how", "error"), [("memory", OutOfResources), ("strange", MissingDependency)])
def test_a_failed_engine_leaves_no_bundle(
    stories: Path,
    tmp_path: Path,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    error: type[Exception],
) -> None:
    monkeypatch.setenv("FAKE_TRTLLM", how)
    folder = tmp_path / "place"
    folder.mkdir()
    with pytest.raises(error):
        built(options(stories, folder / "out", trtllm_python=environment.python))
    check_only_the_checkpoint_is_left(folder)


def test_an_interrupted_engine_leaves_no_bundle(
    stories: Path, tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRTLLM", "hangs")
    folder = tmp_path / "place"
    folder.mkdir()

    def interrupt(line: str) -> None:
        if re.search(r"child \d+", line):
            raise KeyboardInterrupt

    asked = options(stories, folder / "out", trtllm_python=environment.python)
    with pytest.raises(KeyboardInterrupt):
        build(asked, progress=quiet, log=interrupt)
    check_only_the_checkpoint_is_left(folder)


def check_only_the_checkpoint_is_left(folder: Path) -> None:
    """For the same command to go on with, not as a bundle."""
    assert [path.name for path in folder.iterdir()] == [".out.partial"]
    bundle = folder / ".out.partial" / "bundle"
    assert (bundle / "model" / "rank0.safetensors").is_file()
    assert not list(bundle.glob("*engine*"))


def test_the_environment_is_checked_before_the_model_is_opened(tmp_path: Path, environment: Environment) -> None:
    asked = options(tmp_path / "no model", tmp_path / "out", trtllm_python=Path("/nowhere/python"))
    with pytest.raises(MissingDependency, match="nowhere/python cannot be run"):
        prepare(asked)


def test_an_environment_that_nothing_would_use_is_a_mistake(stories: Path, tmp_path: Path) -> None:
    asked = options(stories, tmp_path / "out", target=load_target("cpu"), trtllm_command="docker run image")
    with pytest.raises(UsageError, match="--trtllm-command names what builds engines, and backend onnx has none"):
        prepare(asked)
    asked = options(stories, tmp_path / "out")
    others = [asked, replace(asked, target=load_target("cpu"), out=tmp_path / "two")]
    assert [ready.builder for ready in prepare_all(others)] == [None, None]
