"""A bundle whose engine is elsewhere is judged by the weights it stores, rounded on the way as its engine rounds."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built import all_rows, mean_kl_divergence, quiet, transformers_twin
from numpy.typing import NDArray

from edgeforge.backends import InputScales
from edgeforge.cli import main
from edgeforge.hardware import load_target
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.model.forward import cache_names, final_hidden, forward, lm_head_logits
from edgeforge.pipeline import BuildOptions, build
from edgeforge.planning import BuildPlan, apply_overrides, make_plan, plan_from_json
from edgeforge.quantization import activations
from edgeforge.runtime import verify
from edgeforge.runtime.manifest import read_manifest
from edgeforge.validation import read_report, validate
from edgeforge.validation.stored import open_stored, tap_of

Logits = NDArray[np.float32]
Q_PROJ, O_PROJ, DOWN = (
    f"model.layers.2.{name}.weight" for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
)


@pytest.fixture(scope="module")
def checkpoint(stories: Path) -> Checkpoint:
    return open_checkpoint(str(stories))


def built(stories: Path, folder: Path, **changes: str) -> Path:
    target = apply_overrides(load_target("h100"), **changes)  # type: ignore[arg-type]
    asked = BuildOptions(target=target, model=str(stories), out=folder / "bundle", validate=False)
    return build(asked, progress=quiet).bundle


@pytest.fixture(scope="module")
def fp8(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(stories, tmp_path_factory.mktemp("fp8"), backend="modelopt", scheme="fp8", kv_cache="bf16")


def stored_plan(bundle: Path) -> BuildPlan:
    return plan_from_json(read_manifest(bundle).plan)


def stored_logits(bundle: Path, ids: NDArray[np.int64]) -> Logits:
    weights, tap = open_stored(stored_plan(bundle), bundle / "model")
    return lm_head_logits(weights, final_hidden(weights, ids[None], tap=tap)[0])


@pytest.fixture(scope="module")
def ids(checkpoint: Checkpoint) -> NDArray[np.int64]:
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. " * 6
    return np.array([1, *checkpoint.tokenizer.load().encode(text, add_special_tokens=False).ids])


# the weights


@pytest.mark.parametrize("backend", ["modelopt", "compressed-tensors", "tensorrt-llm"])
def test_unquantized_weights_answer_like_the_original(
    stories: Path, checkpoint: Checkpoint, ids: NDArray[np.int64], tmp_path: Path, backend: str
) -> None:
    bundle = built(stories, tmp_path, backend=backend, scheme="bf16", kv_cache="bf16")
    weights, _ = open_stored(stored_plan(bundle), bundle / "model")
    assert set(checkpoint.names) == {name for name, _ in weights.architecture.tensors()}
    for name in checkpoint.names:
        tensor, original = weights.tensor(name), all_rows(checkpoint, name)
        np.testing.assert_allclose(tensor.rows(0, tensor.shape[0]), original, rtol=2**-8, err_msg=name)
    assert mean_kl_divergence(forward(checkpoint, ids), stored_logits(bundle, ids)) < 5e-4


# what the engine rounds


def torch_fp8_logits(bundle: Path, checkpoint: Checkpoint, ids: NDArray[np.int64]) -> Logits:
    """transformers with the file's own FP8 weights, each linear's input rounded by torch with the file's own scale."""
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    tensors = load_file(bundle / "model" / "model.safetensors")
    model = transformers_twin(checkpoint)
    for name, module in model.named_modules():
        if f"{name}.weight" in tensors and f"{name}.weight" not in ("lm_head.weight",):
            scale = tensors.get(f"{name}.weight_scale")
            weight = tensors[f"{name}.weight"].float()
            module.weight = torch.nn.Parameter(weight if scale is None else weight * scale)
        if f"{name}.input_scale" in tensors:
            module.register_forward_pre_hook(rounded_by(tensors[f"{name}.input_scale"]))
    model.get_submodule("lm_head").weight = model.get_submodule("model.embed_tokens").weight
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(ids[None])).logits[0].numpy())


def rounded_by(scale):  # type: ignore[no-untyped-def]
    import torch

    return lambda module, given: ((given[0] / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale,)


def test_fp8_weights_and_inputs_are_those_that_torch_computes(
    fp8: Path, checkpoint: Checkpoint, ids: NDArray[np.int64]
) -> None:
    """Up to values on the edge of two codes, which the order of a sum tips over."""
    ours, theirs = stored_logits(fp8, ids), torch_fp8_logits(fp8, checkpoint, ids)
    lost = mean_kl_divergence(forward(checkpoint, ids), ours)
    assert mean_kl_divergence(theirs, ours) < lost / 20


def plan_for(checkpoint: Checkpoint, **changes: str) -> BuildPlan:
    """A plan of stories' shape, but for rows that every group size divides."""
    architecture = replace(checkpoint.architecture, hidden_size=128, intermediate_size=256, head_dim=16)
    target = "b200" if changes.get("scheme") == "nvfp4" else "h100"
    return make_plan(architecture, apply_overrides(load_target(target), **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((30, 128), dtype=np.float32)


def test_each_scheme_has_its_own_rounding(checkpoint: Checkpoint, x: NDArray[np.float32]) -> None:
    scales = InputScales(inputs={Q_PROJ: 0.01, Q_PROJ.replace("q_proj", "k_proj"): 0.02, O_PROJ: 0.5})
    fp8 = tap_of(plan_for(checkpoint, backend="modelopt", scheme="fp8", kv_cache="bf16"), scales)
    np.testing.assert_array_equal(fp8(Q_PROJ, x), activations.round_e4m3(x, 0.02))  # the largest of those fused
    np.testing.assert_array_equal(fp8(O_PROJ, x), activations.round_e4m3(x, 0.5))
    np.testing.assert_array_equal(fp8(DOWN, x), activations.round_e4m3_tensor(x))  # no scale: found on the way
    w4a8 = tap_of(plan_for(checkpoint, backend="modelopt", scheme="w4a8", kv_cache="bf16"), scales)
    np.testing.assert_array_equal(w4a8(O_PROJ, x), activations.round_e4m3(x, 0.5))
    nvfp4 = tap_of(plan_for(checkpoint, backend="modelopt", scheme="nvfp4", kv_cache="bf16"), scales)
    np.testing.assert_array_equal(nvfp4(O_PROJ, x), activations.round_nvfp4(x, 0.5))
    dynamic = tap_of(plan_for(checkpoint, backend="modelopt", scheme="fp8-dynamic", kv_cache="bf16"), InputScales())
    np.testing.assert_array_equal(dynamic(O_PROJ, x), activations.round_e4m3_tokens(x))
    w4a16 = tap_of(plan_for(checkpoint, backend="modelopt", scheme="w4a16", kv_cache="bf16"), InputScales())
    assert w4a16(O_PROJ, x) is x
    for tap in (fp8, w4a8, nvfp4, dynamic, w4a16):
        assert all(tap(name, x) is x for name in (*cache_names(2), "lm_head.weight"))


def test_a_pre_quant_scale_comes_before_the_rounding(checkpoint: Checkpoint, x: NDArray[np.float32]) -> None:
    factors = np.linspace(0.5, 2, 128, dtype=np.float32)
    scales = InputScales(inputs={O_PROJ: 0.1}, pre_quant_scales={O_PROJ: factors})
    w4a16 = tap_of(plan_for(checkpoint, backend="modelopt", scheme="w4a16", kv_cache="bf16"), scales)
    np.testing.assert_array_equal(w4a16(O_PROJ, x), x * factors)
    w4a8 = tap_of(plan_for(checkpoint, backend="modelopt", scheme="w4a8", kv_cache="bf16"), scales)
    np.testing.assert_array_equal(w4a8(O_PROJ, x), activations.round_e4m3(x * factors, 0.1))


def test_a_quantized_cache_rounds_keys_and_values(checkpoint: Checkpoint, x: NDArray[np.float32]) -> None:
    layers = checkpoint.architecture.num_hidden_layers
    scales = InputScales(keys=tuple(0.1 + i for i in range(layers)), values=tuple(0.2 + i for i in range(layers)))
    k, v = cache_names(1)
    fp8 = tap_of(plan_for(checkpoint, backend="modelopt", scheme="w4a16", kv_cache="fp8"), scales)
    np.testing.assert_array_equal(fp8(k, x), activations.round_e4m3(x, 1.1))
    np.testing.assert_array_equal(fp8(v, x), activations.round_e4m3(x, 1.2))
    int8 = tap_of(plan_for(checkpoint, backend="tensorrt-llm", scheme="w4a16", kv_cache="int8"), scales)
    np.testing.assert_array_equal(int8(k, x), activations.round_int8(x, 1.1))


# the report


def test_a_good_bundle_passes_and_the_report_says_what_ran(fp8: Path, checkpoint: Checkpoint) -> None:
    steps: list[tuple[int, int]] = []
    report = validate(
        fp8,
        checkpoint,
        gate=load_target("h100").gate,
        chunks=4,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert 0.005 < report.mean_kl_divergence < 0.03
    assert "TensorRT-LLM did not run" in report.notes[0]
    assert "float32 forward pass" in report.notes[0]
    total = 2 * checkpoint.architecture.num_hidden_layers + 4
    assert steps == [(step, total) for step in range(1, total + 1)]


def test_a_quantized_cache_costs_what_it_costs(
    stories: Path, fp8: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    cached = built(stories, tmp_path, backend="modelopt", scheme="fp8", kv_cache="fp8")
    gate = load_target("h100").gate
    with_cache, without = (validate(bundle, checkpoint, gate=gate, chunks=4) for bundle in (cached, fp8))
    assert with_cache.mean_kl_divergence > 1.5 * without.mean_kl_divergence


def run(*argv: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in argv])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_build_and_validate_hold_the_gate(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """stories' heads have 8 channels, which an FP8 cache is too coarse for."""
    bundle = tmp_path / "bundle"
    asked = ("--target", "h100", "--model", stories, "--scheme", "fp8")
    assert run("build", *asked, "--kv-cache", "fp8", "--out", bundle, "-q") == 5
    assert "FAILED" in capsys.readouterr().out
    verify(bundle, "full")
    report = read_report(bundle)
    assert report is not None
    assert report.verdict == "fail"
    assert run("validate", bundle, "--reference", stories, "-q") == 5
    capsys.readouterr()
    good = tmp_path / "good"
    assert run("build", *asked, "--kv-cache", "bf16", "--out", good, "--json") == 0
    assert "did not run" in json.loads(capsys.readouterr().out)["validation"]["notes"][0]
    assert run("validate", good, "--reference", stories, "--chunks", "4", "-q") == 0


def test_files_that_are_not_the_plans_are_refused(fp8: Path, stories: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "cut"
    shutil.copytree(fp8, bundle)
    weights = bundle / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run("validate", bundle, "--reference", stories, "-q") == 6
