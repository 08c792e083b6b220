"""A GGUF file reads as the checkpoint it was made from: names, row order, numbers; and a bad one is one clear
sentence.
"""

import concurrent.futures
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.model import ggml
from edgeforge.model.architecture import Rotary
from edgeforge.model.checkpoint import Source
from edgeforge.model.forward import forward
from edgeforge.model.gguf import GgufCheckpoint, open_gguf
from edgeforge.model.gguf_architecture import architecture_from_metadata, generation_defaults
from edgeforge.model.gguf_header import read_header
from edgeforge.model.rotary import inverse_frequencies
from edgeforge.model.safetensors import open_directory

D, F, V, HEADS, KV, HEAD_DIM = 256, 512, 96, 4, 2, 64
SHAPES = {
    "token_embd": (V, D),
    "blk.0.attn_q": (HEADS * HEAD_DIM, D),
    "blk.0.attn_k": (KV * HEAD_DIM, D),
    "blk.0.attn_v": (KV * HEAD_DIM, D),
    "blk.0.attn_output": (D, HEADS * HEAD_DIM),
    "blk.0.ffn_gate": (F, D),
    "blk.0.ffn_up": (F, D),
    "blk.0.ffn_down": (D, F),
}
METADATA: dict[str, int | float] = {
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": D,
    "llama.feed_forward_length": F,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
Tensors = dict[str, tuple[NDArray[np.generic], GGMLQuantizationType | None]]


def random_blocks(kind: GGMLQuantizationType, shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """A tensor's bytes: quantized from a normal matrix, or, for the K-quants, random with finite scales."""
    rng = np.random.default_rng(seed)
    if "_K" not in kind.name:
        return gguf.quants.quantize(rng.normal(size=shape).astype(np.float32), kind)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (shape[0] * shape[1] // block, block_bytes), dtype=np.uint8)
    halves = rng.normal(size=(len(data), 2)).astype(np.float16).view(np.uint8)
    if kind.name == "Q6_K":
        data[:, -2:] = halves[:, :2]
    else:
        data[:, :4] = halves
    return data.reshape(shape[0], -1)


def write(path: Path, tensors: Tensors, metadata: dict[str, object], architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny(kind: str) -> Tensors:
    """One layer of a Llama, its matrices in ggml type `kind`."""
    quantization = GGMLQuantizationType[kind]
    tensors: Tensors = {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        tensors[f"{name}.weight"] = (random_blocks(quantization, shape, seed), quantization)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        tensors[f"{name}.weight"] = (np.linspace(0.5, 1.5, D, dtype=np.float32), None)
    return tensors


@pytest.fixture(scope="module", params=ggml.READABLE)
def typed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Tensors]:
    kind: str = request.param
    tensors = tiny(kind)
    return kind, write(tmp_path_factory.mktemp(kind) / f"{kind}.gguf", tensors, dict(METADATA)), tensors


def published(name: str, data: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """What the gguf package makes of the whole tensor, with q and k rows in Hugging Face's order."""
    whole: NDArray[np.float32] = gguf.quants.dequantize(data, GGMLQuantizationType[kind])
    heads = {"blk.0.attn_q": HEADS, "blk.0.attn_k": KV}.get(name)
    if heads is None:
        return whole
    return whole.reshape(heads, HEAD_DIM // 2, 2, -1).swapaxes(1, 2).reshape(whole.shape)


HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "blk.0.attn_q": "model.layers.0.self_attn.q_proj",
    "blk.0.attn_k": "model.layers.0.self_attn.k_proj",
    "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
    "blk.0.attn_output": "model.layers.0.self_attn.o_proj",
    "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj",
    "blk.0.ffn_up": "model.layers.0.mlp.up_proj",
    "blk.0.ffn_down": "model.layers.0.mlp.down_proj",
}


def test_rows_are_those_of_the_gguf_packages_own_dequantization(typed: tuple[str, Path, Tensors]) -> None:
    kind, path, tensors = typed
    checkpoint = open_gguf(path)
    assert checkpoint.source == Source(kind="gguf", precision=kind)
    for name, hf_name in HF_NAMES.items():
        data, _ = tensors[f"{name}.weight"]
        expected = published(name, data.view(np.uint8), kind)
        tensor = checkpoint.tensor(f"{hf_name}.weight")
        assert (tensor.name, tensor.dtype, tensor.shape) == (f"{hf_name}.weight", kind, expected.shape)
        for start, stop in ((0, len(expected)), (0, 1), (31, 33), (63, 66), (5, 5), (len(expected) - 1, len(expected))):
            rows = tensor.rows(start, stop)
            assert rows.dtype == np.float32
            np.testing.assert_array_equal(rows, expected[start:stop])
            assert rows.flags.writeable


def test_stored_codes_are_the_rows_without_a_second_rounding(typed: tuple[str, Path, Tensors]) -> None:
    kind, path, _ = typed
    checkpoint = open_gguf(path)
    for hf_name in HF_NAMES.values():
        tensor = checkpoint.tensor(f"{hf_name}.weight")
        stored = tensor.stored_codes(30, 70)
        if tensor.grid is None:
            assert kind not in ("Q4_0", "Q4_1", "Q8_0")
            assert stored is None
            continue
        assert stored is not None
        assert stored.codes.dtype == np.int8
        assert (stored.offsets is not None) == tensor.grid.offset
        assert stored.codes.min() >= -(2 ** (tensor.grid.bits - 1))
        assert stored.codes.max() < 2 ** (tensor.grid.bits - 1)
        weights = stored.codes.reshape(40, -1, tensor.grid.group_size) * stored.scales[:, :, None]
        if stored.offsets is not None:
            weights += stored.offsets[:, :, None]
        np.testing.assert_array_equal(weights.reshape(40, -1), tensor.rows(30, 70))


@pytest.mark.parametrize("kind", list(ggml.GRIDS))
def test_blocks_of_zeros_and_of_one_value_keep_their_codes_exact(kind: str) -> None:
    weights = np.repeat(np.array([[0.0], [0.25], [-3.0], [1e-7]], np.float32), 64, axis=1)
    data = gguf.quants.quantize(weights, GGMLQuantizationType[kind])
    stored = ggml.to_codes(data, kind)
    back = stored.codes.reshape(4, 2, 32) * stored.scales[:, :, None]
    if stored.offsets is not None:
        back += stored.offsets[:, :, None]
    np.testing.assert_array_equal(back.reshape(4, 64), ggml.to_float(data, kind))


@pytest.fixture(scope="module")
def stories_gguf(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260k as llama.cpp's converter would write it: ggml's names, the rows of q and k interleaved, float32."""
    original = open_directory(stories)
    heads = {"q_proj": original.architecture.num_attention_heads, "k_proj": original.architecture.num_key_value_heads}
    layer = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        **{f"self_attn.{role}_proj": f"attn_{role}" for role in "qkv"},
        "self_attn.o_proj": "attn_output",
        **{f"mlp.{role}_proj": f"ffn_{role}" for role in ("gate", "up", "down")},
    }
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    for i in range(original.architecture.num_hidden_layers):
        names |= {f"model.layers.{i}.{hf}": f"blk.{i}.{ours}" for hf, ours in layer.items()}
    tensors: Tensors = {}
    for hf, ours in names.items():
        lazy = original.tensor(f"{hf}.weight")
        weight = lazy.rows(0, lazy.shape[0])
        count = heads.get(hf.rsplit(".", 1)[-1])
        if count is not None:  # convert_hf_to_gguf.py, LlamaModel.permute
            weight = weight.reshape(count, 2, len(weight) // count // 2, -1).swapaxes(1, 2).reshape(weight.shape)
        tensors[f"{ours}.weight"] = (np.ascontiguousarray(weight), None)
    metadata: dict[str, object] = {
        **METADATA,
        "llama.block_count": 5,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 172,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 4,
        "tokenizer.ggml.model": "llama",
    }
    return write(tmp_path_factory.mktemp("stories") / "stories.gguf", tensors, metadata)


def test_a_converted_model_is_the_model_it_was_made_from(stories: Path, stories_gguf: Path) -> None:
    original, converted = open_directory(stories), open_gguf(stories_gguf)
    assert converted.architecture == original.architecture
    assert set(converted.names) == set(original.names)
    for name in original.names:
        expected = original.tensor(name)
        np.testing.assert_array_equal(
            converted.tensor(name).rows(0, expected.shape[0]), expected.rows(0, expected.shape[0])
        )
    ids = np.array([1, 403, 407, 261, 378, 31, 77, 200], np.int64)
    np.testing.assert_array_equal(forward(converted, ids), forward(original, ids))


def test_the_demo_answers_paris(demo_gguf: Path) -> None:
    checkpoint = open_gguf(demo_gguf)
    assert checkpoint.source.precision == "Q4_1"
    assert checkpoint.architecture.parameter_count == 134_515_008
    tokenizer = checkpoint.tokenizer.load()
    prompt = (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is"
    )
    logits = forward(checkpoint, np.array(tokenizer.encode(prompt).ids, np.int64))
    assert tokenizer.decode([int(logits[-1].argmax())]) == " Paris"


def test_threads_share_a_tensor(typed: tuple[str, Path, Tensors]) -> None:
    tensor = open_gguf(typed[1]).tensor("model.layers.0.self_attn.q_proj.weight")
    whole = tensor.rows(0, tensor.shape[0])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: tensor.rows(start, start + 8), range(0, 256, 8)))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_reading_a_few_rows_never_holds_the_whole_tensor(tmp_path: Path) -> None:
    rows = 8192
    tensors = {**tiny("Q8_0"), "token_embd.weight": (random_blocks(GGMLQuantizationType.Q8_0, (rows, D), 0), None)}
    tensors["token_embd.weight"] = (tensors["token_embd.weight"][0], GGMLQuantizationType.Q8_0)
    tensor = open_gguf(write(tmp_path / "m.gguf", tensors, dict(METADATA))).tensor("model.embed_tokens.weight")
    tensor.rows(0, 16)
    tracemalloc.start()
    tensor.rows(4000, 4016)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * D * 4 * 6
    with pytest.raises(IndexError):
        tensor.rows(rows - 1, rows + 1)


def test_the_header_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    extra: dict[str, object] = {
        "general.name": "Ünï 名",
        "x.flag": True,
        "x.float": 0.25,
        "x.texts": ["a", "", "ß"],
        "x.ints": [1, -2, 3],
        "x.floats": [0.5, -1.5],
        "x.flags": [True, False],
        "general.alignment": 64,
    }
    path = write(tmp_path / "m.gguf", tiny("Q4_0"), {**METADATA, **extra})
    header, theirs = read_header(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert dict(header.metadata) == fields
    assert {t.name: (t.offset, t.size_bytes, t.dtype, t.shape) for t in header.tensors} == {
        t.name: (t.data_offset, t.n_bytes, t.tensor_type.name, tuple(reversed(t.shape.tolist())))
        for t in theirs.tensors
    }


def test_the_fingerprint_knows_the_content_and_not_the_path(tmp_path: Path) -> None:
    one = open_gguf(write(tmp_path / "a.gguf", tiny("Q4_0"), dict(METADATA)))
    same = open_gguf(write(tmp_path / "b.gguf", tiny("Q4_0"), dict(METADATA)))
    other = open_gguf(write(tmp_path / "c.gguf", tiny("Q4_0"), {**METADATA, "llama.rope.freq_base": 1e5}))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.fingerprint.startswith("sha256:")


def test_an_output_matrix_unties_the_embedding(tmp_path: Path) -> None:
    head = random_blocks(GGMLQuantizationType.Q6_K, (V, D), 9)
    tensors = {**tiny("Q4_0"), "output.weight": (head, GGMLQuantizationType.Q6_K)}
    checkpoint = open_gguf(write(tmp_path / "m.gguf", tensors, dict(METADATA)))
    assert not checkpoint.architecture.tie_word_embeddings
    assert checkpoint.source.precision == "Q4_0, Q6_K"
    assert "lm_head.weight" in checkpoint.names
    assert open_gguf(write(tmp_path / "n.gguf", tiny("Q4_0"), dict(METADATA))).architecture.tie_word_embeddings


def described(**extra: object) -> object:
    keys = {key.replace("__", "."): value for key, value in extra.items()}
    return architecture_from_metadata(
        {"general.architecture": "llama", **METADATA, **keys}, vocab_size=V, tied=True, rope_factors=None
    )


def test_head_dim_may_differ_from_hidden_size_over_heads() -> None:
    assert described().head_dim == 64
    assert described(llama__rope__dimension_count=32).head_dim == 32
    assert (
        described(
            llama__attention__key_length=32, llama__attention__value_length=32, llama__rope__dimension_count=32
        ).head_dim
        == 32
    )


def test_floats_come_back_as_their_authors_wrote_them() -> None:
    architecture = described(
        llama__attention__layer_norm_rms_epsilon=float(np.float32(1e-5)),
        llama__rope__freq_base=5e5,
        llama__rope__scaling__type="linear",
        llama__rope__scaling__factor=float(np.float32(2.5)),
    )
    assert architecture.rms_norm_eps == 1e-5
    assert architecture.rotary == Rotary(theta=5e5, kind="linear", factor=2.5)


def test_every_end_of_turn_token_ends_generation() -> None:
    tokens = [str(i) for i in range(V - 4)] + ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "x"]
    ids = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__model": "gpt2", "tokenizer__ggml__bos_token_id": 3}
    assert described(**ids, tokenizer__ggml__eos_token_id=V - 2).eos_token_ids == (V - 2, V - 4, V - 3)
    assert described(**ids, tokenizer__ggml__eos_token_id=5, tokenizer__ggml__eot_token_id=6).eos_token_ids == (5, 6)
    assert described(**ids, tokenizer__ggml__eos_token_id=V - 4).eos_token_ids == (V - 4,)
    assert described(**ids).eos_token_ids == ()
    assert described(**ids).bos_token_id == 3
    assert described(tokenizer__ggml__model="llama").bos_token_id == 1


def test_sampling_defaults_are_read_where_the_file_has_them() -> None:
    found = generation_defaults(
        {"general.sampling.temp": 0.0, "general.sampling.top_k": 40, "general.sampling.top_p": 0.5}
    )
    assert (found.temperature, found.top_k, found.top_p, found.repetition_penalty) == (0.0, 40, 0.5, None)


LLAMA3 = Rotary(
    theta=5e5,
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recovered_from_its_divisors(head_dim: int, factor: float, tmp_path: Path) -> None:
    rotary = Rotary(
        theta=5e5,
        kind="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    divisors = inverse_frequencies(Rotary(theta=5e5), head_dim) / inverse_frequencies(rotary, head_dim)
    metadata = {"general.architecture": "llama", **METADATA, "llama.rope.freq_base": 5e5}
    for key in ("llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"):
        metadata[key] = head_dim
    found = architecture_from_metadata(metadata, vocab_size=V, tied=True, rope_factors=divisors.astype(np.float32))
    assert found.rotary == rotary


def test_rope_divisors_travel_through_the_file(tmp_path: Path) -> None:
    divisors = inverse_frequencies(Rotary(theta=5e5), HEAD_DIM) / inverse_frequencies(LLAMA3, HEAD_DIM)
    metadata = {**METADATA, "llama.rope.freq_base": 5e5}

    def opened(values: NDArray[np.float64]) -> GgufCheckpoint:
        tensors = {**tiny("Q4_0"), "rope_freqs.weight": (values.astype(np.float32), None)}
        return open_gguf(write(tmp_path / "m.gguf", tensors, dict(metadata)))

    checkpoint = opened(divisors)
    assert checkpoint.architecture.rotary == LLAMA3
    assert "rope_freqs.weight" not in checkpoint.names
    assert opened(np.ones(HEAD_DIM // 2)).architecture.rotary == Rotary(theta=5e5)
    for wrong in (divisors[:-1], np.linspace(1, 8, HEAD_DIM // 2), divisors[::-1], np.full(HEAD_DIM // 2, 2.0)):
        with pytest.raises(UnusableInput, match="rope_freqs"):
            opened(wrong)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.expert_count", 8),
        ("llama.attention.sliding_window", 4096),
        ("llama.attention.causal", False),
        ("llama.attention.scale", 0.5),
        ("llama.logit_scale", 0.25),
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.dimension_count", 32),
        ("llama.attention.value_length", 32),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.head_count_kv", [2, 1]),
        ("llama.block_count", 0),
        ("llama.attention.layer_norm_rms_epsilon", float("nan")),
    ],
)
def test_other_mathematics_is_refused_by_name(key: str, value: object, tmp_path: Path) -> None:
    metadata = {**METADATA, "llama.attention.key_length": HEAD_DIM, key: value}
    with pytest.raises(UnusableInput, match=key.replace(".", r"\.")):
        open_gguf(write(tmp_path / "m.gguf", tiny("F16"), metadata))


def missing(tensors: Tensors) -> None:
    del tensors["blk.0.attn_v.weight"], tensors["output_norm.weight"]


def misshapen(tensors: Tensors) -> None:
    tensors["blk.0.ffn_up.weight"] = (np.zeros((F, 2 * D), np.float32), None)


def biased(tensors: Tensors) -> None:
    tensors["blk.0.attn_q.bias"] = (np.zeros(D, np.float32), None)


def unreadable(tensors: Tensors) -> None:
    tensors["token_embd.weight"] = (np.zeros((V, D // 32 * 18), np.uint8), GGMLQuantizationType.IQ4_NL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"self_attn\.v_proj\.weight is missing.*model\.norm|model\.norm.*v_proj\.weight is missing"),
        (misshapen, r"up_proj\.weight is \[512, 512\] instead of \[512, 256\]"),
        (biased, r"attn_q\.bias is not a weight"),
        (unreadable, "1 tensors as IQ4_NL"),
    ],
)
def test_wrong_tensors_are_named(change: Callable[[Tensors], None], message: str, tmp_path: Path) -> None:
    tensors = tiny("F16")
    change(tensors)
    with pytest.raises(UnusableInput, match=message):
        open_gguf(write(tmp_path / "m.gguf", tensors, dict(METADATA)))


def test_other_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    whole = write(path, tiny("Q4_0"), dict(METADATA)).read_bytes()
    for start, message in (
        (b"PK\3\4", "not a GGUF file"),
        (b"GGUF\0\0\0\3", "big-endian"),
        (b"GGUF\1\0\0\0", "version 1"),
    ):
        path.write_bytes(start + whole[len(start) :])
        with pytest.raises(UnusableInput, match=message):
            open_gguf(path)
    with pytest.raises(UnusableInput, match="holds a qwen2 model"):
        open_gguf(write(path, tiny("Q4_0"), dict(METADATA), architecture="qwen2"))
    with pytest.raises(UnusableInput, match="one part of a split model"):
        open_gguf(write(path, tiny("Q4_0"), {**METADATA, "split.count": 3}))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    folder = tmp_path_factory.mktemp("damage")
    metadata = {**METADATA, "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.0, 1.0]}
    return write(folder / "whole.gguf", tiny("Q4_0"), metadata).read_bytes(), folder / "damaged.gguf"


def test_a_truncated_file_says_so_wherever_it_ends(small: tuple[bytes, Path]) -> None:
    whole, path = small
    header = read_header(path.with_name("whole.gguf")).tensors[0].offset
    for length in [*range(4, header, 7), header, header + 1, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UnusableInput, match="truncated") as raised:
            open_gguf(path)
        assert raised.value.hint


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_header_is_refused_or_harmless_and_never_a_crash(
    small: tuple[bytes, Path], changes: list[tuple[int, int]]
) -> None:
    whole, path = small
    header = read_header(path.with_name("whole.gguf")).tensors[0].offset
    changed = bytearray(whole)
    for at, value in changes:
        changed[at % header] = value
    path.write_bytes(changed)
    try:
        checkpoint = open_gguf(path)
    except UnusableInput:
        pass
    else:
        json.dumps(checkpoint.fingerprint)
        for name in checkpoint.names:
            checkpoint.tensor(name).rows(0, 1)


def test_overlapping_tensors_are_refused(small: tuple[bytes, Path]) -> None:
    whole, path = small
    offset = read_header(path.with_name("whole.gguf")).tensors
    start, second = offset[0].offset, offset[1].offset - offset[0].offset
    at = whole.rindex(second.to_bytes(8, "little"), 0, start)
    path.write_bytes(whole[:at] + (0).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(UnusableInput, match="overlap"):
        open_gguf(path)
