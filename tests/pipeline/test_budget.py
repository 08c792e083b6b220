"""What a budget buys: within it to the byte, by losses that say what the model then does, and a sentence where nothing
is that small."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built import all_rows, quiet
from numpy.typing import NDArray

from edgeforge.cli import main
from edgeforge.errors import DoesNotFit, UsageError
from edgeforge.hardware import load_target
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.model.forward import forward
from edgeforge.pipeline import BuildOptions, build, build_all
from edgeforge.pipeline.budget import Budget, Spent, check, spend
from edgeforge.pipeline.budget_options import items_of, losses_of
from edgeforge.pipeline.calibration_samples import read_samples
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.planning import BuildPlan, apply_overrides, draft_plan, fused_blocks, plan_from_json
from edgeforge.quantization.quantize import quantize
from edgeforge.quantization.scheme import dequantize

pytest.importorskip("torch")


def unwatched(done: int, total: int) -> None:
    """Progress that nobody watches."""


def unheard(line: str) -> None:
    """A log that nobody reads."""


@pytest.fixture(scope="module")
def checkpoint(stories: Path) -> Checkpoint:
    return open_checkpoint(str(stories))


@pytest.fixture(scope="module")
def plan(checkpoint: Checkpoint) -> BuildPlan:
    return draft_plan(checkpoint.architecture, apply_overrides(load_target("cpu"), group_size=32))


@pytest.fixture(scope="module")
def text(test_data: Path) -> Path:
    return test_data / "calibration" / "tiny.txt.gz"


@pytest.fixture(scope="module")
def tokens(checkpoint: Checkpoint, text: Path) -> CalibrationTokens:
    return read_samples(checkpoint, text, samples=16)


@pytest.fixture(scope="module")
def spent(
    checkpoint: Checkpoint, plan: BuildPlan, tokens: CalibrationTokens, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Spent]:
    folder = tmp_path_factory.mktemp("grams") / "state"
    return {
        size: spend(
            checkpoint,
            plan,
            Budget(max_bytes=size),
            tokens,
            folder,
            device="cpu",
            threads=threads,
            progress=unwatched,
            log=unheard,
        )
        for size, threads in ((200_000, 1), (240_000, 2), (280_000, 2))
    }


def test_the_budget_is_kept_and_used(spent: dict[int, Spent]) -> None:
    for size, found in spent.items():
        assert 0.99 * size < found.weights_bytes <= size


def test_more_bytes_diverge_less(spent: dict[int, Spent]) -> None:
    losses = [found.divergence for found in spent.values()]
    assert losses[0] > 2 * losses[1] > 4 * losses[2] > 0


def test_fused_linears_share_a_scheme(spent: dict[int, Spent]) -> None:
    for found in spent.values():
        for block in fused_blocks(found.plan.architecture):
            assert len({found.plan.schemes[linear.name] for linear in block}) == 1
        assert len(set(found.plan.schemes.values())) > 2  # it is a mix


def test_the_number_of_threads_changes_nothing(
    checkpoint: Checkpoint, plan: BuildPlan, tokens: CalibrationTokens, spent: dict[int, Spent], tmp_path: Path
) -> None:
    again = spend(
        checkpoint,
        plan,
        Budget(max_bytes=200_000),
        tokens,
        tmp_path / "state",
        device="cpu",
        threads=2,
        progress=unwatched,
        log=unheard,
    )
    assert again == spent[200_000]


def test_a_divergence_buys_the_fewest_bytes(
    checkpoint: Checkpoint, plan: BuildPlan, tokens: CalibrationTokens, spent: dict[int, Spent], tmp_path: Path
) -> None:
    limit = spent[240_000].divergence
    found = spend(
        checkpoint,
        plan,
        Budget(max_divergence=limit),
        tokens,
        tmp_path / "state",
        device="cpu",
        threads=2,
        progress=unwatched,
        log=unheard,
    )
    assert found.divergence <= limit
    assert 0.98 * 240_000 < found.weights_bytes <= 240_000 + 1000  # alignment is no part of what is minimised
    with pytest.raises(DoesNotFit, match=r"out of reach: 8 bits everywhere are predicted to have 0\.0") as raised:
        spend(
            checkpoint,
            plan,
            Budget(max_divergence=1e-7),
            tokens,
            tmp_path / "state",
            device="cpu",
            threads=2,
            progress=unwatched,
            log=unheard,
        )
    assert "--max-divergence 0.0" in (raised.value.hint or "")


# predictions


class Changed:
    """A checkpoint with one matrix rounded."""

    def __init__(self, original: Checkpoint, name: str, values: NDArray[np.float32]) -> None:
        self.original, self.name, self.values = original, name, values
        self.architecture = original.architecture

    def tensor(self, name: str):  # type: ignore[no-untyped-def]
        return Rounded(self.values) if name == self.name else self.original.tensor(name)


class Rounded:
    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values, self.shape = values, values.shape

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.values[start:stop]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return found


def test_the_loss_of_an_option_is_the_divergence_that_it_causes(
    checkpoint: Checkpoint, plan: BuildPlan, tokens: CalibrationTokens, tmp_path: Path
) -> None:
    """Each matrix of two layers rounded alone, in the float32 reference; within a factor of two for each."""
    from edgeforge.pipeline import sensitivity
    from edgeforge.pipeline.layerwise import collect_grams

    plan = replace(plan, target=replace(plan.target, activations="f16"))  # whose inputs nothing rounds
    grams = collect_grams(
        checkpoint, tokens, tmp_path / "state", device="cpu", threads=2, progress=unwatched, log=unheard
    )
    measured = sensitivity.measure(
        checkpoint, tokens.ids, tmp_path / "gradients", device="cpu", threads=2, progress=unwatched
    )
    items = items_of(plan)
    losses = losses_of(checkpoint, plan, items, grams, measured, unwatched)
    before = [log_softmax(forward(checkpoint, ids)) for ids in tokens.ids[:4]]
    ratios = []
    for item, each in zip(items, losses, strict=True):
        if len(item.names) > 1 or not item.names[0].startswith(("model.layers.1.", "model.layers.3.")):
            continue
        scheme, name = item.schemes[0], item.names[0]
        values = dequantize(quantize(all_rows(checkpoint, name), scheme, algorithm="search"))
        changed = Changed(checkpoint, name, values)
        after = [log_softmax(forward(changed, ids)) for ids in tokens.ids[:4]]  # type: ignore[arg-type]
        pairs = zip(before, after, strict=True)
        divergence = float(np.mean([(np.exp(p) * (p - q)).sum(axis=-1) for p, q in pairs]))
        ratios.append(each[0] / divergence)
    assert len(ratios) == 4
    assert all(0.5 < ratio < 2 for ratio in ratios), ratios


# refusals


def asked(stories: Path, out: Path, **changes: object) -> BuildOptions:
    options = BuildOptions(target=load_target("cpu"), model=str(stories), out=out, validate=False)
    return replace(options, **changes)  # type: ignore[arg-type]


def test_too_few_bytes_are_refused_before_the_work_with_the_fewest(plan: BuildPlan) -> None:
    with pytest.raises(DoesNotFit, match=r"1,000 bytes are too few: the smallest weights .* take") as raised:
        check([plan], Budget(max_bytes=1000))
    smallest = int((raised.value.hint or "").split()[1])
    check([plan], Budget(max_bytes=smallest))
    with pytest.raises(DoesNotFit):
        check([plan], Budget(max_bytes=smallest - 1))


def test_other_backends_and_several_targets_are_refused(stories: Path, tmp_path: Path) -> None:
    budget = Budget(max_bytes=10**9)
    h100 = asked(stories, tmp_path / "a", target=load_target("h100"), budget=budget)
    with pytest.raises(UsageError, match="which backend modelopt cannot store"):
        build(h100, progress=quiet)
    two = [asked(stories, tmp_path / name, budget=budget) for name in "ab"]
    with pytest.raises(UsageError, match="one target at a time"):
        build_all(two, progress=quiet)


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--scheme", "auto"], 2, "needs a limit"),
        (["--scheme", "auto", "--max-bytes", "9", "--max-divergence", "1"], 2, "needs a limit"),
        (["--max-bytes", "100000"], 2, "are for --scheme auto"),
        (["--scheme", "auto", "--max-bytes", "100000", "--dry-run"], 2, "which --dry-run does not"),
        (["--scheme", "auto", "--max-bytes", "1000"], 4, "1,000 bytes are too few"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["build", "-t", "cpu", "-m", str(stories), "-o", str(tmp_path / "bundle"), *argv])
    assert ended.value.code == code
    error = capsys.readouterr().err
    assert says in error
    assert "hint: " in error


# the whole way


def test_the_bundle_has_the_predicted_bytes_and_tells_what_was_chosen(
    stories: Path, text: Path, tmp_path: Path
) -> None:
    options = asked(stories, tmp_path / "bundle", budget=Budget(max_bytes=240_000), calibration=text, chunks=2)
    result = build(replace(options, validate=True), progress=quiet)
    told = json.loads((result.bundle / "manifest.json").read_text())["plan"]
    spent = told["allocation"]
    assert spent["max_bytes"] == 240_000
    assert (result.bundle / "model" / "model.onnx.data").stat().st_size == spent["weights_bytes"] <= 240_000
    assert sum(spent["tensors"].values()) == len(told["tensors"])
    assert told["calibration"]["samples"] == 128
    assert plan_from_json(told).schemes == result.plan.schemes
    assert result.validation is not None
    assert result.validation.mean_kl_divergence < 2 * spent["predicted_divergence"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
