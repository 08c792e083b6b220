"""The tapped stream is the model's own, and damage shows at the layer where it was done."""

from pathlib import Path

import numpy as np
import pytest
from built import Build, build_once, quiet, transformers_twin
from tiny_bundle import make_bundle

from edgeforge.hardware import load_target
from edgeforge.pipeline import BuildOptions, build, resolve_target
from edgeforge.runtime import load
from edgeforge.validation.probes.layers import judge_layers, probe_layers, relative_errors
from edgeforge.validation.probes.residuals import residual_streams

from .broken import changed, noisy, subject, unheard

IDS = list(range(1, 65))


def test_the_stream_is_transformers(stories_f32: Build) -> None:
    torch = pytest.importorskip("torch")
    twin = transformers_twin(stories_f32.checkpoint)
    with torch.no_grad():
        _, *hidden = twin(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    ours = residual_streams(stories_f32.load(), IDS)
    assert len(ours) == len(hidden) == 5
    for layer, x in enumerate(hidden[:-1]):  # the last one of theirs has gone through the final norm
        np.testing.assert_allclose(ours[layer], x[0].numpy(), rtol=1e-3, atol=1e-4)
    rms = np.sqrt((ours[-1] ** 2).mean(axis=1, keepdims=True) + stories_f32.plan.architecture.rms_norm_eps)
    tensor = stories_f32.checkpoint.tensor("model.norm.weight")
    np.testing.assert_allclose(ours[-1] / rms * tensor.rows(0, 64), hidden[-1][0].numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("matrix", "layer"), [("layers.0.qkv", 0), ("layers.3.down", 3), ("layers.4.gate_up", 4)])
def test_noise_shows_at_its_layer(stories_f32: Build, tmp_path: Path, matrix: str, layer: int) -> None:
    bundle = changed(stories_f32.bundle, tmp_path / "b", noisy(stories_f32.plan, matrix, 0.2))
    found = probe_layers(subject(stories_f32.load(), load(bundle)), unheard)
    errors = [row.relative_error for row in found.layers]
    assert errors[:layer] == [0.0] * layer
    assert errors[layer] > 1e-4
    assert (found.verdict, found.figures[1].candidate) == ("pass", layer)


def test_more_error_than_signal_fails(stories_f32: Build, tmp_path: Path) -> None:
    bundle = changed(stories_f32.bundle, tmp_path / "b", noisy(stories_f32.plan, "layers.2.down", 20.0))
    found = probe_layers(subject(stories_f32.load(), load(bundle)), unheard)
    assert found.verdict == "fail"
    assert found.summary.startswith("From layer 2 on the residual stream has more error than signal")


def test_quantized_half_precision_and_rotated_bundles_are_all_compared(
    stories: Path, stories_f32: Build, stories_int4: Build, tmp_path: Path
) -> None:
    reference = stories_f32.load()
    half = build_once(tmp_path, str(stories), scheme="f16").load()
    target = resolve_target(load_target("cpu"), scheme="w8a16", group_size=32, algorithm="rtn", rotate=True)
    options = BuildOptions(target=target, model=str(stories), out=tmp_path / "rotated", validate=False)
    turned = load(build(options, progress=quiet).bundle)
    last = {}
    for name, model in {"half": half, "rotated": turned, "int4": stories_int4.load()}.items():
        found = probe_layers(subject(reference, model), unheard)
        assert found.verdict == "pass"
        last[name] = found.layers[-1].relative_error
    assert last["rotated"] < 0.01 and last["half"] < 1e-4 < last["int4"] < 0.3


def test_a_graph_without_fused_norms_is_skipped(tmp_path: Path) -> None:
    model = load(make_bundle(tmp_path / "b"))
    found = probe_layers(subject(model, model), unheard)
    assert found.verdict == "skipped"
    assert "does not show its residual stream" in found.summary


def test_what_is_not_finite_fails_and_only_what_is_known_is_told() -> None:
    x = np.ones((3, 4, 8), np.float32)
    y = x.copy()
    y[1, 2, 0] = np.nan
    found = judge_layers(relative_errors(x, y))
    assert (found.verdict, len(found.layers)) == ("fail", 1)
    assert "not finite from layer 1 on" in found.summary
