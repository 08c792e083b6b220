"""The reference forward pass answers like transformers' LlamaForCausalLM in float32."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from edgeforge.model.architecture import LlamaArchitecture, architecture_from_config, hf_config
from edgeforge.model.forward import cache_names, embed, final_hidden, forward, lm_head_logits, rms_norm, swiglu
from edgeforge.model.safetensors import SafetensorsCheckpoint, open_directory, write_safetensors

BASE: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, dict[str, object]] = {
    "grouped queries": {},
    "every head its own keys": {"num_key_value_heads": 6},
    "one head of keys": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 32},
    "llama3 rotary": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, **LLAMA3}},
    "linear rotary": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic rotary": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
}


def random_checkpoint(folder: Path, architecture: LlamaArchitecture, *, dtype: str = "F32") -> SafetensorsCheckpoint:
    rng = np.random.default_rng(0)
    (folder / "config.json").write_text(json.dumps(hf_config(architecture, dtype="float32")))
    rows = [(name, dtype, shape) for name, shape in architecture.tensors()]
    with write_safetensors(folder / "model.safetensors", rows, metadata={"format": "pt"}) as writer:
        for name, _, shape in rows:
            # Unit variance through every linear, so that attention is far from uniform.
            spread = 1.0 if len(shape) == 1 else 1.5 * shape[1] ** -0.5
            writer.write(name, 0, spread * rng.standard_normal(shape, dtype=np.float32))
    return open_directory(folder)


def their_logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.asarray(model(torch.tensor(ids)).logits.numpy())


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    checkpoint = random_checkpoint(tmp_path, architecture_from_config(BASE | CASES[case]))
    # Longer than two blocks of queries, and well past the 64 positions that llama3's scaling calls original.
    ids = np.random.default_rng(1).integers(0, 101, (2, 600))
    want = their_logits(tmp_path, ids)
    hidden = final_hidden(checkpoint, ids)
    assert hidden.dtype == np.float32
    for sequence, theirs in zip(hidden, want, strict=True):
        assert np.abs(lm_head_logits(checkpoint, sequence) - theirs).max() < 1e-4


def test_logits_at_long_positions_are_those_of_transformers(tmp_path: Path) -> None:
    changes = CASES["llama3 rotary"] | {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    checkpoint = random_checkpoint(tmp_path, architecture_from_config(BASE | changes))
    ids = np.random.default_rng(1).integers(0, 101, 3000)
    assert np.abs(forward(checkpoint, ids)[-500:] - their_logits(tmp_path, ids[None])[0, -500:]).max() < 1e-4


def test_the_real_float32_model_answers_like_transformers(stories: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 512, 400)
    assert np.abs(forward(open_directory(stories), ids) - their_logits(stories, ids[None])[0]).max() < 1e-4


def test_the_real_float32_model_has_its_published_perplexity(stories: Path, test_data: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(stories / "tokenizer.json"))
    with gzip.open(test_data / "calibration" / "tiny.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read()[:40_000]
    ids = np.array([1, *tokenizer.encode(text, add_special_tokens=False).ids])
    windows = ids[: len(ids) // 512 * 512].reshape(-1, 512)
    checkpoint = open_directory(stories)
    hidden = final_hidden(checkpoint, windows)[:, :-1].reshape(-1, 64)
    logits = lm_head_logits(checkpoint, hidden).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scored = likelihood[np.arange(len(logits)), windows[:, 1:].reshape(-1)]
    assert scored.size == 18_907
    assert np.exp(-scored.mean()) == pytest.approx(7.919, abs=0.001)


def test_sequences_of_a_batch_do_not_see_each_other(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path, architecture_from_config(BASE))
    ids = np.random.default_rng(1).integers(0, 101, (3, 40))
    together = final_hidden(checkpoint, ids)
    for one, row in zip(ids, together, strict=True):
        np.testing.assert_allclose(final_hidden(checkpoint, one[None])[0], row, atol=1e-4)


def test_a_token_sees_nothing_after_itself(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path, architecture_from_config(BASE))
    ids = np.random.default_rng(1).integers(0, 101, 300)
    changed = ids.copy()
    changed[280:] = (changed[280:] + 1) % 101
    before, after = forward(checkpoint, ids), forward(checkpoint, changed)
    np.testing.assert_allclose(before[:280], after[:280], atol=1e-4)
    assert np.abs(before[280] - after[280]).max() > 0.1


def test_progress_counts_layers(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path, architecture_from_config(BASE), dtype="BF16")
    seen: list[tuple[int, int]] = []
    final_hidden(checkpoint, np.zeros((1, 4), np.int64), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("token", [-1, 101])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, token: int) -> None:
    checkpoint = random_checkpoint(tmp_path, architecture_from_config(BASE))
    with pytest.raises(ValueError, match="token ids"):
        final_hidden(checkpoint, np.array([[0, token]]))


def test_blocks_of_the_embedding_and_head_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(tmp_path, architecture_from_config(BASE))
    table = checkpoint.tensor("model.embed_tokens.weight").rows(0, 101)
    ids = np.random.default_rng(0).integers(0, 101, 50)
    hidden = np.random.default_rng(0).standard_normal((5, 48), dtype=np.float32)
    whole = lm_head_logits(checkpoint, hidden)
    monkeypatch.setattr("edgeforge.model.forward.BLOCK_BYTES", 7 * 48 * 4)
    np.testing.assert_array_equal(embed(checkpoint.tensor("model.embed_tokens.weight"), ids), table[ids])
    np.testing.assert_allclose(lm_head_logits(checkpoint, hidden), whole, atol=1e-5)


def test_norm_and_activation_are_finite_at_the_edges() -> None:
    zero = np.zeros((2, 8), np.float32)
    np.testing.assert_array_equal(rms_norm(zero, np.ones(8, np.float32), 1e-5), zero)
    gate = np.float32([[-1e4, -90.0, 0.0, 90.0, 1e4]])
    np.testing.assert_allclose(swiglu(gate.copy(), np.ones_like(gate)), [[0, 0, 0, 90, 1e4]], atol=1e-6)


# the tap


def their_activations(folder: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What transformers' linears are given, by the weight's name, and what its cache holds, by the tap's names."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: dict[str, np.ndarray] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        return lambda module, given: seen.__setitem__(name, given[0].reshape(-1, given[0].shape[-1]).numpy())

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(keep(f"{name}.weight"))
    with torch.no_grad():
        cache = model(torch.tensor(ids), use_cache=True).past_key_values
    for layer in range(model.config.num_hidden_layers):
        for name, held in zip(cache_names(layer), (cache.layers[layer].keys, cache.layers[layer].values), strict=True):
            seen[name] = held.numpy()
    return seen


def test_the_tap_sees_what_transformers_computes(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path, architecture_from_config(BASE))
    ids = np.random.default_rng(1).integers(0, 101, (2, 40))
    seen: dict[str, np.ndarray] = {}

    def tap(name: str, x: np.ndarray) -> np.ndarray:
        seen[name] = x.copy()
        return x

    np.testing.assert_array_equal(final_hidden(checkpoint, ids, tap=tap), final_hidden(checkpoint, ids))
    theirs = their_activations(tmp_path, ids)
    assert len(seen) == checkpoint.architecture.num_hidden_layers * 6
    for name, x in seen.items():
        np.testing.assert_allclose(x, theirs[name], atol=1e-4, err_msg=name)
    for name, sharing in (("q_proj", ("k_proj", "v_proj")), ("gate_proj", ("up_proj",))):
        for tapped in (tapped for tapped in seen if name in tapped):
            for other in sharing:
                np.testing.assert_array_equal(theirs[tapped], theirs[tapped.replace(name, other)])


@pytest.mark.parametrize("tapped", ["self_attn.q_proj.weight", "mlp.down_proj.weight", "self_attn.v_cache"])
def test_what_the_tap_answers_is_what_flows_on(tmp_path: Path, tapped: str) -> None:
    checkpoint = random_checkpoint(tmp_path, architecture_from_config(BASE))
    ids = np.random.default_rng(1).integers(0, 101, (1, 40))
    doubled = f"model.layers.1.{tapped}"

    def tap(name: str, x: np.ndarray) -> np.ndarray:
        return 2 * x if name == doubled else x

    assert np.abs(final_hidden(checkpoint, ids, tap=tap) - final_hidden(checkpoint, ids)).max() > 0.1


def test_a_layers_matrices_are_read_by_blocks_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(tmp_path, architecture_from_config(BASE))
    ids = np.random.default_rng(1).integers(0, 101, (1, 40))
    whole = final_hidden(checkpoint, ids)
    monkeypatch.setattr("edgeforge.model.forward.BLOCK_BYTES", 7 * 48 * 4)
    np.testing.assert_allclose(final_hidden(checkpoint, ids), whole, atol=1e-4)
