"""e4m3 codes chosen on text: they lose less than rounded ones, do not depend on threads, and other people's reader
finds in the bundle what the pass chose.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built import quiet, tiny_stories

from edgeforge.errors import UsageError
from edgeforge.hardware import load_target
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.pipeline import BuildOptions, build, build_all
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.pipeline.layerwise import Quantized, Recipe, collect_grams, quantize_layers
from edgeforge.planning import BuildPlan, apply_overrides, fused_blocks, make_plan
from edgeforge.quantization.quantize import quantize
from edgeforge.quantization.scheme import QuantizedTensor, dequantize
from edgeforge.validation.stored import open_stored

torch = pytest.importorskip("torch")

SCHEMES = ("fp8", "fp8-dynamic")
GPTQ = Recipe(algorithm="gptq")
ALONE = Recipe(algorithm="gptq", corrects=False, emphasis=0)  # each matrix for itself, as the Gram matrix weighs it


@pytest.fixture(scope="module")
def checkpoint(stories: Path) -> Checkpoint:
    return open_checkpoint(str(stories))


@pytest.fixture(scope="module")
def tokens(checkpoint: Checkpoint, test_data: Path) -> CalibrationTokens:
    ids = checkpoint.tokenizer.load().encode(tiny_stories(test_data)[:60_000], add_special_tokens=False).ids
    rows = np.array(ids[: 32 * 255], np.int64).reshape(32, 255)
    return CalibrationTokens(ids=np.insert(rows, 0, 1, axis=1), text_sha256="0" * 64)


@pytest.fixture(scope="module")
def text(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "tiny.txt"
    file.write_text(tiny_stories(test_data)[:60_000], encoding="utf-8")
    return file


def plan_of(checkpoint: Checkpoint, scheme: str) -> BuildPlan:
    target = apply_overrides(load_target("h100"), backend="modelopt", scheme=scheme)
    return make_plan(checkpoint.architecture, target)


def learn(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    tokens: CalibrationTokens,
    folder: Path,
    recipe: Recipe = GPTQ,
    threads: int = 1,
) -> Quantized:
    return quantize_layers(
        checkpoint, plan, tokens, recipe, folder, threads=threads, progress=lambda *_: None, log=lambda _: None
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_chosen_on_text_lose_less_of_the_outputs_than_rounded_ones(
    checkpoint: Checkpoint, tokens: CalibrationTokens, tmp_path: Path, scheme: str
) -> None:
    """tr(E G E^T) of every block, where none also makes up for what drifted before it."""
    plan = plan_of(checkpoint, scheme)
    chosen = learn(checkpoint, plan, tokens, tmp_path / "codes", ALONE)
    grams = collect_grams(checkpoint, tokens, tmp_path / "grams", progress=lambda *_: None, log=lambda _: None)
    shares = []
    for block in fused_blocks(checkpoint.architecture):
        if block[0].role == "lm_head":
            continue
        losses = np.zeros(2)
        weights = {linear.name: checkpoint.tensor(linear.name).rows(0, linear.out_features) for linear in block}
        amax = max(float(np.abs(w).max()) for w in weights.values())
        for name, w in weights.items():
            rounded = quantize(w, plan.schemes[name], amax=amax)
            found = chosen.tensor(name)
            assert isinstance(found, QuantizedTensor)
            assert found.scheme == plan.schemes[name]
            if scheme == "fp8":
                np.testing.assert_array_equal(found.scales, rounded.scales)
            changes = [(dequantize(tensor) - w).astype(np.float64) for tensor in (rounded, found)]
            losses += [float((change @ grams.gram(name) * change).sum()) for change in changes]
        shares.append(losses[1] / losses[0])
    assert max(shares) < 1, shares
    assert float(np.exp(np.mean(np.log(shares)))) < 0.7, shares


@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_threads_choose_the_codes_that_one_does(
    checkpoint: Checkpoint, tokens: CalibrationTokens, tmp_path: Path, scheme: str
) -> None:
    plan, some = plan_of(checkpoint, scheme), replace(tokens, ids=tokens.ids[:16])
    one, two = (learn(checkpoint, plan, some, tmp_path / str(threads), threads=threads) for threads in (1, 2))
    assert one.names == two.names
    for name in one.names:
        a, b = one.tensor(name), two.tensor(name)
        assert isinstance(a, QuantizedTensor) and isinstance(b, QuantizedTensor)
        np.testing.assert_array_equal(a.codes.view(np.uint8), b.codes.view(np.uint8))
        np.testing.assert_array_equal(a.scales, b.scales)
    assert one.calibration == two.calibration


@pytest.mark.parametrize("scheme", ["fp8-dynamic"])
def test_compressed_tensors_reads_the_codes_that_text_chose(
    stories: Path, checkpoint: Checkpoint, text: Path, tmp_path: Path, scheme: str
) -> None:
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors, which ci/setup installs")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    target = apply_overrides(load_target("l40s"), backend="compressed-tensors", scheme=scheme)
    options = BuildOptions(target=target, model=str(stories), out=tmp_path / "b", validate=False, calibration=text)
    plan = build(options, progress=quiet).plan
    assert plan.target.algorithm == "gptq"  # auto's choice, where there is text
    model = tmp_path / "b" / "model"
    ours, _ = open_stored(plan, model)
    config = QuantizationConfig.model_validate(json.loads((model / "config.json").read_text())["quantization_config"])
    compressor = BaseCompressor.get_value_from_registry(config.format)
    (group,) = config.config_groups.values()
    stored = load_file(model / "model.safetensors")
    moved = 0
    for linear in checkpoint.architecture.linears():
        if linear.role == "lm_head":
            continue
        prefix = linear.name.removesuffix("weight")
        state = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
        state["weight_scale"] = state["weight_scale"].to(torch.float32)
        theirs = compressor.decompress(state, group)["weight"].numpy()
        np.testing.assert_array_equal(theirs, ours.tensor(linear.name).rows(0, linear.out_features))
        w = checkpoint.tensor(linear.name).rows(0, linear.out_features)
        error = np.abs(theirs - w)
        assert error.mean() < 0.05 * np.abs(w).mean()
        moved += int((error > np.abs(w) / 15).sum())
    assert moved > 1000  # not the nearest code, which is never more than a sixteenth away: others made up for


def test_text_for_several_targets_chooses_no_codes_unless_told_to(stories: Path, text: Path, tmp_path: Path) -> None:
    target = apply_overrides(load_target("h100"), backend="modelopt", scheme="fp8")
    options = [
        BuildOptions(target=target, model=str(stories), out=tmp_path / name, validate=False, calibration=text)
        for name in ("one", "two")
    ]
    assert [result.plan.target.algorithm for result in build_all(options, progress=quiet)] == ["rtn", "rtn"]
    told = [replace(each, target=replace(target, algorithm="gptq")) for each in options]
    with pytest.raises(UsageError, match="one target at a time"):
        build_all([replace(each, out=tmp_path / f"{each.out.name}2") for each in told], progress=quiet)
