"""The second road: what optimum exports runs in our runtime and is transformers' own model."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeforge import pipeline
from edgeforge.backends import optimum
from edgeforge.errors import EdgeForgeError, MissingDependency, OutOfResources, UsageError
from edgeforge.hardware import load_target
from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.pipeline import BuildOptions, BuildResult
from edgeforge.planning import BuildPlan, make_plan
from edgeforge.runtime import load

PROMPT = "Once upon a time, there was a little girl named Lily."


def options(stories: Path, out: Path, scheme: str) -> BuildOptions:
    target = pipeline.resolve_target(load_target("cpu"), scheme=scheme)
    return BuildOptions(target=target, model=str(stories), out=out, validate=False, exporter="optimum")


def planned(stories: Path) -> BuildPlan:
    target = pipeline.resolve_target(load_target("cpu"), scheme="f32")
    return make_plan(open_checkpoint(str(stories)).architecture, target)


def needs_optimum() -> None:
    try:
        optimum.check_installed()
    except MissingDependency as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture(scope="module")
def built(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    needs_optimum()
    out = tmp_path_factory.mktemp("optimum") / "stories"
    return pipeline.build(options(stories, out, "f32"), progress=lambda *_: None)


@pytest.fixture(scope="module")
def ids(built: BuildResult) -> list[int]:
    """200 tokens of the model's own prose."""
    model = load(built.bundle)
    prompt = model.encode(PROMPT)
    told = [token for chunk in model.generate(prompt, max_new_tokens=200) for token in chunk.token_ids]
    return [*prompt, *told][:200]


def their_model(stories: Path) -> Callable[[list[int]], NDArray[np.float32]]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()

    def logits(ids: list[int]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(model(torch.tensor([ids])).logits[0].numpy())

    return logits


@pytest.mark.slow
def test_logits_and_greedy_tokens_are_those_of_transformers(built: BuildResult, stories: Path, ids: list[int]) -> None:
    model, theirs = load(built.bundle), their_model(stories)
    np.testing.assert_allclose(model.score(ids), theirs(ids), rtol=0, atol=1e-4)
    prompt = model.encode(PROMPT)
    told = [token for chunk in model.generate(prompt, max_new_tokens=64) for token in chunk.token_ids]
    expected = list(prompt)
    for _ in told:
        expected.append(int(theirs(expected)[-1].argmax()))
    assert len(told) == 64
    assert told == expected[len(prompt) :]


@pytest.mark.slow
def test_the_bundle_has_the_graph_and_nothing_of_the_way_there(built: BuildResult, stories: Path) -> None:
    tokenizer = open_checkpoint(str(stories)).tokenizer.files
    assert {path.name for path in (built.bundle / "model").iterdir()} == {optimum.GRAPH_FILE, *tokenizer}
    assert built.manifest.model.backend == "optimum"
    assert built.manifest.model.weights is None
    assert not built.manifest.determinism.reproducible


@pytest.mark.slow
def test_half_precision_is_half_the_bytes_and_close(
    built: BuildResult, stories: Path, ids: list[int], tmp_path: Path
) -> None:
    half = pipeline.build(options(stories, tmp_path / "half", "f16"), progress=lambda *_: None)
    sizes = [(result.bundle / "model" / optimum.GRAPH_FILE).stat().st_size for result in (built, half)]
    parameters = built.plan.architecture.parameter_count
    assert sizes[0] - sizes[1] == pytest.approx(2 * parameters, rel=0.1)
    difference = np.abs(load(half.bundle).score(ids) - load(built.bundle).score(ids)).max()
    assert 0 < difference < 0.1


def test_quantized_schemes_are_refused_before_the_work(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="w4a16"):
        pipeline.prepare(options(stories, tmp_path / "out", "w4a16"))


def test_a_missing_package_is_told_before_the_work(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if package in ("torch", "optimum-onnx"):
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(optimum, "version", version)
    with pytest.raises(MissingDependency, match="needs optimum-onnx and torch") as raised:
        pipeline.prepare(options(stories, tmp_path / "out", "f32"))
    assert raised.value.exit_code == 7
    assert raised.value.hint == "pip install 'edgeforge[optimum]'"


def test_a_full_disk_is_told_before_the_work(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_optimum()
    plan = planned(stories)
    few = optimum.COPIES_ON_DISK * 4 * plan.architecture.parameter_count - 1
    monkeypatch.setattr(optimum.shutil, "disk_usage", lambda _: type("Usage", (), {"free": few}))
    with pytest.raises(OutOfResources, match="3 MB"):
        optimum.export(plan, open_checkpoint(str(stories)), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        ("raise ValueError('this graph is not for me')", EdgeForgeError, "ValueError: this graph is not for me"),
        ("raise MemoryError", OutOfResources, "MemoryError"),
        ("import os; os.kill(os.getpid(), 9)", OutOfResources, "signal 9"),
        ("import sys; sys.exit(0)", EdgeForgeError, "no reason given"),
    ],
)
def test_a_failed_export_says_why_and_leaves_nothing(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, kind: type[EdgeForgeError], words: str
) -> None:
    needs_optimum()
    monkeypatch.setattr(optimum, "PROGRAM", program)
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(kind, match=words) as raised:
        optimum.export(planned(stories), open_checkpoint(str(stories)), folder)
    assert type(raised.value) is kind
    assert list(tmp_path.rglob("*")) == [folder]


def test_what_lies_in_the_working_directory_is_not_imported(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_optimum()
    (tmp_path / "colorsys.py").write_text("raise SystemExit('imported')")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optimum, "PROGRAM", "import colorsys; raise ValueError('not shadowed')")
    with pytest.raises(EdgeForgeError, match="not shadowed"):
        optimum.export(planned(stories), open_checkpoint(str(stories)), tmp_path / "model")


def test_checking_for_packages_imports_none_of_them() -> None:
    program = (
        "import sys; from edgeforge.backends import optimum; optimum.check_installed();"
        "sys.exit(' '.join({'torch', 'transformers', 'optimum.exporters'} & set(sys.modules)))"
    )
    needs_optimum()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@pytest.mark.slow
def test_weights_beside_the_graph_are_carried_along(
    built: BuildResult, stories: Path, ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")  # optimum's own switch; above 2 GB it has no choice
    apart = pipeline.build(options(stories, tmp_path / "apart", "f32"), progress=lambda *_: None)
    assert apart.manifest.model.weights == f"model/{optimum.EXTERNAL_DATA_FILE}"
    sizes = [(apart.bundle / "model" / name).stat().st_size for name in (optimum.GRAPH_FILE, "model.onnx_data")]
    assert sizes[1] >= 4 * apart.plan.architecture.parameter_count > sizes[0]
    np.testing.assert_array_equal(load(apart.bundle).score(ids), load(built.bundle).score(ids))


def test_a_gpu_target_needs_the_gpu_edition(stories: Path) -> None:
    plan = planned(stories)
    assert optimum.requirements(plan).provider == "CPUExecutionProvider"
    gpu = replace(plan, target=pipeline.resolve_target(load_target("rtx4090"), scheme="f16"))
    assert optimum.requirements(gpu).provider == "CUDAExecutionProvider"
