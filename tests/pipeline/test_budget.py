"""What a budget buys: within it to the byte, by losses that say what the model then does, and a sentence where nothing
is that small."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from built import all_rows, quiet
from numpy.typing import NDArray

from edgeforge.cli import main
from edgeforge.errors import DoesNotFit, OutOfResources, UnusableInput, UsageError
from edgeforge.hardware import load_target
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.model.forward import forward
from edgeforge.pipeline import BuildOptions, build, build_all
from edgeforge.pipeline.budget import Budget, Spent, check, spend
from edgeforge.pipeline.budget_losses import drawn_rows, losses_of
from edgeforge.pipeline.budget_options import items_of
from edgeforge.pipeline.budget_weighing import Weighing, weigh
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


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Not the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("EDGEFORGE_CACHE", str(folder))
        yield folder


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


def weighed(checkpoint: Checkpoint, plan: BuildPlan, tokens: CalibrationTokens, threads: int = 2) -> Weighing:
    return weigh(checkpoint, plan, tokens, None, device="cpu", threads=threads, progress=unwatched, log=unheard)


@pytest.fixture(scope="module")
def weighing(checkpoint: Checkpoint, plan: BuildPlan, tokens: CalibrationTokens, cache: Path) -> Weighing:
    return weighed(checkpoint, plan, tokens)


@pytest.fixture(scope="module")
def spent(plan: BuildPlan, weighing: Weighing) -> dict[int, Spent]:
    return {size: spend(plan, weighing, Budget(max_bytes=size)) for size in (200_000, 240_000, 280_000)}


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
    checkpoint: Checkpoint, plan: BuildPlan, few: CalibrationTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeforge.pipeline.budget_losses.ROWS", 48)
    found = []
    for threads in (1, 3):
        monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / str(threads)))
        found.append(weighed(checkpoint, plan, few, threads))
    assert found[0] == found[1]


def test_a_divergence_buys_the_fewest_bytes(plan: BuildPlan, weighing: Weighing, spent: dict[int, Spent]) -> None:
    limit = spent[240_000].divergence
    found = spend(plan, weighing, Budget(max_divergence=limit))
    assert found.divergence <= limit
    assert 0.98 * 240_000 < found.weights_bytes <= 240_000 + 1000  # alignment is no part of what is minimised
    with pytest.raises(DoesNotFit, match=r"out of reach: 8 bits everywhere are predicted to have 0\.0") as raised:
        spend(plan, weighing, Budget(max_divergence=1e-7))
    assert "--max-divergence 0.0" in (raised.value.hint or "")


def test_what_was_chosen_adds_up_and_the_next_smaller_way_would_cost_more(spent: dict[int, Spent]) -> None:
    for size, found in spent.items():
        told = found.document()["chosen"]
        assert isinstance(told, list)
        assert sum(each["predicted_loss"] for each in told) == pytest.approx(found.divergence)
        assert 0.9 * size < sum(each["bytes"] for each in told) <= size
        assert sum(each["blocks"] for each in told) == 1 + 4 * 5  # the embedding, and four matrices a layer
        assert [each["block"] for each in told][:2] == ["embedding", "qkv"]
        for block in found.blocks:
            if block.smaller is not None:
                assert block.smaller.bytes < block.chosen.bytes
                assert block.smaller.loss > block.chosen.loss


# rows that stand for others


def test_rows_stand_for_all_importance_and_each_for_its_own_or_more() -> None:
    importance = np.random.default_rng(0).gamma(0.2, size=5000).astype(np.float32)
    importance[::3] = 0
    rows, shares = drawn_rows(importance, 300)
    assert len(rows) <= 300
    assert np.isclose(shares.sum(), importance.sum(dtype=np.float64))
    assert (importance[rows] > 0).all()
    unit = importance.sum(dtype=np.float64) / 300
    assert (np.abs(shares - importance[rows])[importance[rows] > unit] <= unit * 1.001).all()
    values = np.random.default_rng(1).gamma(2.0, size=5000)
    assert np.isclose(shares @ values[rows], importance @ values, rtol=0.1)


def test_few_rows_stand_for_themselves() -> None:
    importance = np.array([1, 0, 3], np.float32)
    rows, shares = drawn_rows(importance, 3)
    assert rows.tolist() == [0, 1, 2]
    assert shares.tolist() == [1, 0, 3]
    assert drawn_rows(np.zeros(9, np.float32), 3)[1].sum() == 0


def test_some_rows_tell_what_all_rows_would(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    tokens: CalibrationTokens,
    weighing: Weighing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks here have 64 to 384 rows, and the embedding 512."""
    monkeypatch.setattr("edgeforge.pipeline.budget_losses.ROWS", 48)
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path))
    few = weighed(checkpoint, plan, tokens)
    budget = Budget(max_bytes=240_000)
    exact, rough = spend(plan, weighing, budget), spend(plan, few, budget)
    schemes = [each.chosen.scheme for each in rough.blocks]
    cost = sum(
        losses[item.schemes.index(scheme)]
        for item, losses, scheme in zip(weighing.items, weighing.losses, schemes, strict=True)
    )
    assert cost < 1.05 * exact.divergence


# what is kept


class Counted:
    """How often the model was run."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        from edgeforge.pipeline import sensitivity

        self.runs, self.measure = 0, sensitivity.measure
        patch.setattr(sensitivity, "measure", self)

    def __call__(self, *arguments: object, **named: object) -> object:
        self.runs += 1
        return self.measure(*arguments, **named)  # type: ignore[arg-type]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counted:
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "cache"))
    return Counted(monkeypatch)


@pytest.fixture
def few(tokens: CalibrationTokens) -> CalibrationTokens:
    return replace(tokens, ids=tokens.ids[:2, :64])


def test_a_model_is_weighed_once(
    checkpoint: Checkpoint, plan: BuildPlan, few: CalibrationTokens, counted: Counted, tmp_path: Path
) -> None:
    first = weighed(checkpoint, plan, few)
    assert weighed(checkpoint, plan, few) == first
    assert counted.runs == 1
    (kept,) = (tmp_path / "cache" / "weighing").iterdir()  # and nothing else
    assert kept.suffix == ".json"
    assert kept.stat().st_size < 100_000


def test_whatever_decides_the_losses_is_weighed_anew(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    few: CalibrationTokens,
    counted: Counted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    f16 = draft_plan(plan.architecture, replace(plan.target, activations="f16"))
    weighed(checkpoint, plan, few)
    weighed(checkpoint, f16, few)
    weighed(checkpoint, plan, replace(few, ids=few.ids[:, ::-1].copy()))
    assert counted.runs == 3
    longer = draft_plan(plan.architecture, replace(plan.target, context=77))
    weighed(checkpoint, longer, few)
    assert counted.runs == 3  # the context is no part of it
    monkeypatch.setattr("edgeforge.pipeline.budget_weighing.WEIGHING", -1)
    weighed(checkpoint, plan, few)
    monkeypatch.setattr("edgeforge.pipeline.budget_weighing.__version__", "0.0.0")
    weighed(checkpoint, plan, few)
    assert counted.runs == 5


@pytest.mark.parametrize("damage", ["cut", "empty", "nan", "other", "list", "losses"])
def test_a_damaged_cache_is_weighed_anew(
    checkpoint: Checkpoint, plan: BuildPlan, few: CalibrationTokens, counted: Counted, tmp_path: Path, damage: str
) -> None:
    first = weighed(checkpoint, plan, few)
    (kept,) = (tmp_path / "cache" / "weighing").glob("*.json")
    text = kept.read_text()
    told = json.loads(text)
    spoiled = {
        "cut": text[: len(text) // 2],
        "empty": "",
        "nan": json.dumps({**told, "losses": [[float("nan")] * len(each) for each in told["losses"]]}),
        "other": json.dumps({**told, "key": {**told["key"], "model": "sha256:0"}}),
        "list": "[]",
        "losses": json.dumps({**told, "losses": told["losses"][1:]}),
    }
    kept.write_text(spoiled[damage])
    assert weighed(checkpoint, plan, few) == first
    assert counted.runs == 2
    assert kept.read_text() == text


def test_a_cache_that_cannot_be_written_is_no_failure(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    few: CalibrationTokens,
    counted: Counted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "file" / "cache"))
    said: list[str] = []
    weigh(checkpoint, plan, few, None, device="cpu", threads=1, progress=unwatched, log=said.append)
    assert len(said) == 1
    assert said[0].startswith("the weighed options could not be kept")
    assert counted.runs == 1


def test_a_disk_without_room_is_told_before_the_work(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    few: CalibrationTokens,
    counted: Counted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weighed(checkpoint, plan, few)
    free = SimpleNamespace(free=500_000)
    monkeypatch.setattr("edgeforge.pipeline.budget_weighing.shutil.disk_usage", lambda place: free)
    with pytest.raises(OutOfResources, match=r"keeps 2 MB of files, and .* has 0 MB free") as raised:
        weighed(checkpoint, plan, replace(few, ids=few.ids + 1))
    assert "EDGEFORGE_CACHE" in (raised.value.hint or "")
    assert counted.runs == 1


def test_weights_that_are_not_finite_are_refused(
    checkpoint: Checkpoint, plan: BuildPlan, few: CalibrationTokens, counted: Counted
) -> None:
    name = "model.norm.weight"
    broken = Changed(checkpoint, name, np.full(64, np.nan, np.float32))
    with pytest.raises(UnusableInput, match="not finite"):
        weighed(broken, plan, few)  # type: ignore[arg-type]


# predictions


class Changed:
    """A checkpoint with one matrix rounded."""

    def __init__(self, original: Checkpoint, name: str, values: NDArray[np.float32]) -> None:
        self.original, self.name, self.values = original, name, values
        self.architecture = original.architecture
        self.names, self.fingerprint = original.names, original.fingerprint + " changed"

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
    losses = losses_of(checkpoint, plan, items, grams, measured, threads=2, progress=unwatched)
    before = [log_softmax(forward(checkpoint, ids)) for ids in tokens.ids[:4]]
    ratios = []
    for item, each in zip(items, losses, strict=True):
        if len(item.names) > 1 or not item.names[0].startswith(("model.layers.1.", "model.layers.3.")):
            continue
        scheme, name = item.schemes[0], item.names[0]
        values = dequantize(quantize(all_rows(checkpoint, name), scheme, algorithm="search"))
        changed = Changed(checkpoint, name, values)
        after = [log_softmax(forward(changed, ids)) for ids in tokens.ids[:4]]
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
        (["--scheme", "auto", "--max-bytes", "1000", "--dry-run"], 4, "1,000 bytes are too few"),
        (["--scheme", "auto", "--max-bytes", "1000"], 4, "1,000 bytes are too few"),
        (
            ["--scheme", "auto", "--max-bytes", "240000", "--algorithm", "search", "--calibration", "a.safetensors"],
            2,
            "--scheme auto reads text, and a.safetensors holds scales",
        ),
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


def test_a_budget_takes_text_whatever_chooses_the_codes(stories: Path, text: Path, tmp_path: Path) -> None:
    """Which `--algorithm search` alone has no use for."""
    target = apply_overrides(load_target("cpu"), algorithm="search")
    options = asked(stories, tmp_path / "bundle", target=target, budget=Budget(max_bytes=240_000), calibration=text)
    told = build(options, progress=quiet).manifest.plan
    assert told["allocation"]["max_bytes"] == 240_000  # type: ignore[index]
    assert "calibration" not in told
