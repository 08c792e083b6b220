"""Checkpoints that transformers itself writes, in every shape a Llama comes in, answer like transformers."""

from pathlib import Path

import numpy as np
import pytest
from built import Build, build_once, greedy, twin_logits
from tiny_bundle import byte_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB = 260  # the byte tokenizer's
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 257,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,  # far from uniform answers
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def write_checkpoint(folder: Path, changes: dict[str, object], *, dtype: str = "float32", seed: int = 0) -> None:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**(SMALL | changes))
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # made as ones, which would hide a norm applied twice or in the wrong place
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    byte_tokenizer(VOCAB).save(str(folder / "tokenizer.json"))


def their_model(folder: Path):  # type: ignore[no-untyped-def]
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def random_ids(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(1).integers(0, 256, count)]


def built(folder: Path, changes: dict[str, object], *, dtype: str = "float32", context: int | None = None) -> Build:
    write_checkpoint(folder / "checkpoint", changes, dtype=dtype)
    return build_once(folder, str(folder / "checkpoint"), scheme="f32", context=context)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="untied"),
        pytest.param({"tie_word_embeddings": True}, id="tied"),
        pytest.param({"num_key_value_heads": 4}, id="every head its own keys"),
        pytest.param({"num_key_value_heads": 1}, id="one head of keys"),
        pytest.param({"head_dim": 32}, id="heads wider than the hidden size"),
        pytest.param({"head_dim": 8}, id="heads too narrow for the attention operator's rotary"),
        pytest.param({"head_dim": 24}, id="heads of 24"),
        pytest.param({"num_hidden_layers": 1}, id="one layer"),
        pytest.param({"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 5}, id="odd heads"),
        pytest.param({"intermediate_size": 99}, id="an odd feed-forward size"),
        pytest.param({"rms_norm_eps": 1e-2}, id="a large epsilon"),
        pytest.param({"rope_theta": 5e5}, id="another theta"),
        pytest.param({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, id="linear rotary"),
    ],
)
def test_logits_and_greedy_answers(tmp_path: Path, changes: dict[str, object]) -> None:
    build = built(tmp_path, changes)
    model, prompt = build.load(), random_ids(150)
    answer = greedy(model, prompt, 20)
    logits = twin_logits(their_model(tmp_path / "checkpoint"), np.array([prompt + answer]))[0]
    assert logits.std() > 0.5
    assert np.abs(model.score(prompt + answer) - logits).max() < 1e-3
    assert logits[149:169].argmax(-1).tolist() == answer


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_checkpoints_are_read_exactly(tmp_path: Path, dtype: str) -> None:
    build = built(tmp_path, {}, dtype=dtype)
    ids = random_ids(200)
    logits = twin_logits(their_model(tmp_path / "checkpoint"), np.array([ids]))[0]
    assert np.abs(build.load().score(ids) - logits).max() < 1e-3


def test_llama3_rotary_beyond_its_original_positions(tmp_path: Path) -> None:
    """Past 8,192 tokens, through the generating graph and its cache, in the runtime's chunks."""
    changes = {
        "max_position_embeddings": 131_072,
        "rope_theta": 5e5,
        "rope_scaling": LLAMA3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    }
    build = built(tmp_path, changes, context=9000)
    ids = random_ids(8400)
    logits = twin_logits(their_model(tmp_path / "checkpoint"), np.array([ids]))[0]
    decoder = build.load().decoder
    done = 0
    for length in (100, 4000, 8192, 8193, 8400):
        got = decoder.append(ids[done:length])
        assert np.abs(got - logits[length - 1]).max() < 1e-3, length
        done = length


def test_dynamic_rotary_is_capped_where_it_would_change(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 512}
    build = built(tmp_path, {"rope_scaling": scaling}, context=4096)
    ids = random_ids(512)
    assert build.plan.target.context == 512
    logits = twin_logits(their_model(tmp_path / "checkpoint"), np.array([ids]))[0]
    assert np.abs(build.load().score(ids) - logits).max() < 1e-3


def test_a_sharded_checkpoint_gives_the_same_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "whole", {})
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    byte_tokenizer(VOCAB).save(str(tmp_path / "sharded" / "tokenizer.json"))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    weights = []
    for name in ("whole", "sharded"):
        (tmp_path / f"out-{name}").mkdir()
        build = build_once(tmp_path / f"out-{name}", str(tmp_path / name))
        weights.append((build.bundle / "model" / "model.onnx.data").read_bytes())
    assert weights[0] == weights[1]
