"""The calibrated pass on stories260k: its arithmetic is transformers', its codes beat rounding, and nothing but the
checkpoint, the plan, the text and the recipe decides the bytes.
"""

import gzip
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.hardware import load_target
from edgeforge.model.checkpoint import Checkpoint, TensorRows, open_checkpoint
from edgeforge.model.forward import final_hidden, lm_head_logits
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.pipeline.layerwise import Quantized, Recipe, collect_grams, quantize_layers
from edgeforge.planning import BuildPlan, apply_overrides, make_plan
from edgeforge.quantization.quantize import quantize
from edgeforge.quantization.scheme import QuantizedTensor, dequantize

torch = pytest.importorskip("torch")

GPTQ = Recipe(algorithm="gptq")
HELD_OUT = 40_000  # characters of the text that perplexity is measured on, and calibration never sees


@pytest.fixture(scope="module")
def checkpoint(stories: Path) -> Checkpoint:
    return open_checkpoint(str(stories))


@pytest.fixture(scope="module")
def text(test_data: Path) -> str:
    with gzip.open(test_data / "calibration" / "tiny.txt.gz", "rt", encoding="utf-8") as file:
        return file.read()


@pytest.fixture(scope="module")
def tokens(checkpoint: Checkpoint, text: str) -> CalibrationTokens:
    return samples(checkpoint, text[HELD_OUT:], 32)


def samples(checkpoint: Checkpoint, text: str, count: int) -> CalibrationTokens:
    ids = np.array(checkpoint.tokenizer.load().encode(text, add_special_tokens=False).ids[: count * 511], np.int64)
    return CalibrationTokens(ids=np.insert(ids.reshape(-1, 511), 0, 1, axis=1), text_sha256="0" * 64)


def few(tokens: CalibrationTokens) -> CalibrationTokens:
    return replace(tokens, ids=tokens.ids[:4, :128])


def plan_of(checkpoint: Checkpoint, **changes: int) -> BuildPlan:
    return make_plan(checkpoint.architecture, apply_overrides(load_target("cpu"), group_size=32, **changes))


def unheard(*_: object) -> None:
    """Nobody listens."""


def learn(
    checkpoint: Checkpoint, plan: BuildPlan, tokens: CalibrationTokens, recipe: Recipe, folder: Path, threads: int = 1
) -> Quantized:
    return quantize_layers(checkpoint, plan, tokens, recipe, folder, threads=threads, progress=unheard, log=unheard)


class Rounded:
    """The checkpoint with what the pass made of it, and the rest rounded to nearest."""

    def __init__(self, checkpoint: Checkpoint, plan: BuildPlan, quantized: Quantized | None) -> None:
        self.architecture = checkpoint.architecture
        self._values = {name: self._value(checkpoint, plan, quantized, name) for name in checkpoint.names}

    @staticmethod
    def _value(checkpoint: Checkpoint, plan: BuildPlan, quantized: Quantized | None, name: str) -> NDArray[np.float32]:
        if quantized is not None and name in quantized.names:
            tensor = quantized.tensor(name)
            return dequantize(tensor) if isinstance(tensor, QuantizedTensor) else tensor
        rows = checkpoint.tensor(name).rows(0, checkpoint.tensor(name).shape[0])
        return dequantize(quantize(rows, plan.schemes[name])) if name in plan.schemes else rows

    def tensor(self, name: str) -> TensorRows:
        values = self._values[name]

        class Held:
            shape = values.shape

            def rows(self, start: int, stop: int) -> NDArray[np.float32]:
                return values[start:stop].copy()

        return Held()


def perplexity(model: Rounded | Checkpoint, ids: NDArray[np.int64]) -> float:
    total = 0.0
    for window in ids:
        logits = lm_head_logits(model, final_hidden(model, window[None])[0])[:-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        total += np.log(np.exp(logits).sum(axis=1)).sum() - logits[np.arange(len(logits)), window[1:]].sum()
    return float(np.exp(total / (ids.shape[0] * (ids.shape[1] - 1))))


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("layer-*"))}


def test_a_layer_computes_what_transformers_computes(stories: Path, checkpoint: Checkpoint) -> None:
    transformers = pytest.importorskip("transformers")
    from edgeforge.pipeline.layerwise.decoder import layer_output, shapes
    from edgeforge.pipeline.layerwise.passes import load_layer

    cpu = torch.device("cpu")
    theirs = transformers.LlamaForCausalLM.from_pretrained(stories, dtype=torch.float32)
    ids = torch.arange(1, 200)[None]
    with torch.no_grad():
        expected = theirs(ids, output_hidden_states=True).hidden_states
        for layer in range(checkpoint.architecture.num_hidden_layers - 1):  # theirs has the last one's after the norm
            s = shapes(checkpoint.architecture, ids.shape[1], cpu)
            ours = layer_output(expected[layer][0], load_layer(checkpoint, layer, cpu), s)
            torch.testing.assert_close(ours, expected[layer + 1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("algorithm", "share"), [("gptq", 0.6), ("awq", 0.9), ("awq+gptq", 0.55)])
def test_codes_chosen_on_text_lose_less_than_rounding(
    checkpoint: Checkpoint, text: str, tokens: CalibrationTokens, tmp_path: Path, algorithm: str, share: float
) -> None:
    plan = plan_of(checkpoint)
    held_out = samples(checkpoint, text[:HELD_OUT], 16).ids
    original = perplexity(checkpoint, held_out)
    rounded = perplexity(Rounded(checkpoint, plan, None), held_out)
    recipe = Recipe(algorithm=algorithm)  # type: ignore[arg-type]
    chosen = perplexity(Rounded(checkpoint, plan, learn(checkpoint, plan, tokens, recipe, tmp_path / "s")), held_out)
    assert chosen - original < share * (rounded - original)


def test_eight_bits_with_awqs_scales_folded_in_answer_like_the_original(
    checkpoint: Checkpoint, tokens: CalibrationTokens, tmp_path: Path
) -> None:
    plan = make_plan(
        checkpoint.architecture, apply_overrides(load_target("cpu"), scheme="w8a16", group_size=32, symmetric=False)
    )
    quantized = learn(checkpoint, plan, few(tokens), Recipe(algorithm="awq"), tmp_path / "s")
    norm = "model.layers.1.input_layernorm.weight"
    assert norm in quantized.names
    assert not np.array_equal(quantized.tensor(norm), checkpoint.tensor(norm).rows(0, 64))
    ids = tokens.ids[:1]
    expected, found = final_hidden(checkpoint, ids), final_hidden(Rounded(checkpoint, plan, quantized), ids)
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("recipe", [GPTQ, Recipe(algorithm="awq+gptq")], ids=lambda recipe: recipe.algorithm)
def test_two_threads_choose_the_codes_that_one_does(
    checkpoint: Checkpoint, tokens: CalibrationTokens, tmp_path: Path, recipe: Recipe
) -> None:
    plan, some = plan_of(checkpoint), replace(tokens, ids=tokens.ids[:16, :256])
    learn(checkpoint, plan, some, recipe, tmp_path / "one", threads=1)
    learn(checkpoint, plan, some, recipe, tmp_path / "two", threads=2)
    assert parts(tmp_path / "one") == parts(tmp_path / "two")


def test_a_stopped_pass_goes_on_at_its_layer_and_ends_in_the_same_bytes(
    checkpoint: Checkpoint, tokens: CalibrationTokens, tmp_path: Path
) -> None:
    plan, some, told = plan_of(checkpoint), few(tokens), list[str]()
    learn(checkpoint, plan, some, GPTQ, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_layers(checkpoint, plan, some, GPTQ, tmp_path / "part", progress=stop, log=unheard)
    kept = parts(tmp_path / "part")
    assert 1 <= len(kept) < 5
    untouched = (tmp_path / "part" / min(kept)).stat().st_mtime_ns
    quantize_layers(checkpoint, plan, some, GPTQ, tmp_path / "part", progress=unheard, log=told.append)
    assert told == [f"going on after {len(kept)} finished layers in part"]
    assert (tmp_path / "part" / min(kept)).stat().st_mtime_ns == untouched
    assert parts(tmp_path / "part") == parts(tmp_path / "whole")


def test_another_recipe_starts_again_and_says_so(
    checkpoint: Checkpoint, tokens: CalibrationTokens, tmp_path: Path
) -> None:
    plan, told = plan_of(checkpoint), list[str]()
    learn(checkpoint, plan, few(tokens), GPTQ, tmp_path / "s")
    before = parts(tmp_path / "s")
    other = replace(GPTQ, damping=0.1)
    quantize_layers(checkpoint, plan, few(tokens), other, tmp_path / "s", progress=unheard, log=told.append)
    assert told == ["s is of another calibration: starting again"]
    assert parts(tmp_path / "s") != before


def test_activations_that_are_not_finite_are_told_by_their_layer(
    checkpoint: Checkpoint, tokens: CalibrationTokens, tmp_path: Path
) -> None:
    broken = Broken(checkpoint, "model.layers.2.post_attention_layernorm.weight", np.float32(3e38))
    with pytest.raises(UnusableInput, match=r"not finite at model\.layers\.2\.mlp\.gate_proj\.weight"):
        learn(broken, plan_of(checkpoint), few(tokens), GPTQ, tmp_path / "s")  # type: ignore[arg-type]
    broken = Broken(checkpoint, "model.layers.3.mlp.up_proj.weight", np.float32(np.nan))
    with pytest.raises(UnusableInput, match=r"model\.layers\.3\.mlp\.up_proj\.weight contains NaN"):
        learn(broken, plan_of(checkpoint), few(tokens), GPTQ, tmp_path / "s2")  # type: ignore[arg-type]


class Broken:
    """A checkpoint with one number in the place of a tensor."""

    def __init__(self, checkpoint: Checkpoint, name: str, value: np.float32) -> None:
        self._checkpoint, self._name, self._value = checkpoint, name, value

    def __getattr__(self, name: str) -> object:
        return getattr(self._checkpoint, name)

    def tensor(self, name: str) -> object:
        tensor, value = self._checkpoint.tensor(name), self._value
        if name != self._name:
            return tensor

        class One:
            shape, grid = tensor.shape, None

            def rows(self, start: int, stop: int) -> NDArray[np.float32]:
                return np.full((stop - start, *tensor.shape[1:]), value, np.float32)

        return One()


def test_a_singular_hessian_gets_more_damping_and_is_told(
    checkpoint: Checkpoint, tokens: CalibrationTokens, tmp_path: Path
) -> None:
    told: list[str] = []
    same = replace(tokens, ids=np.ones((2, 8), np.int64))
    recipe = replace(GPTQ, damping=1e-12)
    quantize_layers(checkpoint, plan_of(checkpoint), same, recipe, tmp_path / "s", progress=unheard, log=told.append)
    assert any("singular Hessian" in line and "q_proj" in line for line in told)


@pytest.mark.parametrize(("precision", "off"), [("float32", 1e-3), ("as it is", 1e-2)])
def test_grams_are_those_of_the_inputs(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    off: float,
) -> None:
    from edgeforge.pipeline.layerwise import passes

    if precision == "float32":
        monkeypatch.setattr(passes, "products_in_bfloat16", nullcontext)
    some, seen = few(tokens), dict[str, NDArray[np.float32]]()

    def tap(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if name.endswith(".weight"):  # not what is cached
            seen[name] = x.astype(np.float64).T @ x
        return x

    last = final_hidden(checkpoint, some.ids, tap=tap).reshape(-1, 64).astype(np.float64)
    grams = collect_grams(checkpoint, some, tmp_path / "g", threads=2, progress=unheard, log=unheard)
    assert set(grams.names) == {linear.name for linear in checkpoint.architecture.linears()} | {
        "model.embed_tokens.weight"
    }
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        expected = seen[f"model.layers.4.{name}.weight"]
        np.testing.assert_allclose(grams.gram(f"model.layers.4.{name}.weight"), expected, atol=off * expected.max())
    expected = last.T @ last
    np.testing.assert_allclose(grams.gram("model.embed_tokens.weight"), expected, atol=off * expected.max())
    np.testing.assert_array_equal(
        grams.gram("model.layers.0.self_attn.v_proj.weight"), grams.gram("model.layers.0.self_attn.q_proj.weight")
    )
    shutil.rmtree(tmp_path / "g")
