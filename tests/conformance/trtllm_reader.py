"""Reads a TensorRT-LLM checkpoint (releases up to 1.2.1) and puts its ranks together again.

Written from the description of the format alone, sharing no code with the writer. A rank's linears are unpacked first;
then q, k and v are cut out of the fused matrix, and the ranks' parts are joined along the dimension they were split on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from raw_files import Array, Floats, number, read_file, read_json, scalar, spread, typed, unpack_rows

LINEARS = {
    "attention.dense": "self_attn.o_proj",
    "mlp.fc": "mlp.gate_proj",  # sic: fc is what the activation is applied to
    "mlp.gate": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
BY_COLUMNS = ("attention.dense", "mlp.proj")
"""Split along their inputs; all others along their outputs."""
QUANTIZATION_KEYS = {
    "quant_algo",
    "kv_cache_quant_algo",
    "group_size",
    "has_zero_point",
    "pre_quant_scale",
    "exclude_modules",
}
FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One rank's share of a linear. codes, weights [n, k]; scales [n, G], or [n, 1]; pre_quant_scale [k]."""

    codes: Floats
    scales: Floats
    weights: Floats
    single: tuple[float, ...] = ()
    """What the whole matrix has one of: the input's scale, the second scale, FP8's weight scale."""
    pre_quant_scale: Floats | None = None

    def rows(self, start: int, stop: int) -> "Part":
        cut = slice(start, stop)
        return Part(
            codes=self.codes[cut],
            scales=self.scales[cut],
            weights=self.weights[cut],
            single=self.single,
            pre_quant_scale=self.pre_quant_scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The whole model again, under Hugging Face names; `kv` holds the cache's scale of each layer."""

    config: Mapping[str, object]
    linears: Mapping[str, Part]
    plain: Mapping[str, Floats]
    kv: tuple[float, ...]

    @property
    def weights(self) -> dict[str, Floats]:
        return {**self.plain, **{f"{name}.weight": part.weights for name, part in self.linears.items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of config.json that shapes follow from."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    width: int
    vocab: int
    tp: int
    pp: int

    @property
    def local_kv_heads(self) -> int:
        """A rank's key and value heads: its share, or a copy of one where there are more ranks than heads."""
        return max(1, self.kv_heads // self.tp)

    def local(self, name: str) -> tuple[int, int]:
        """(out, in) of one rank's share of a linear."""
        qkv = (self.heads // self.tp + 2 * self.local_kv_heads) * self.width
        return {
            "attention.qkv": (qkv, self.hidden),
            "attention.dense": (self.hidden, self.heads * self.width // self.tp),
            "mlp.fc": (self.inner // self.tp, self.hidden),
            "mlp.gate": (self.inner // self.tp, self.hidden),
            "mlp.proj": (self.hidden, self.inner // self.tp),
        }[name]


def read_trtllm(folder: Path, *, ignored: tuple[str, ...] = ()) -> Loaded:
    """`ignored`: endings of names that may be there beside what the format asks for (TensorRT-LLM warns of extras)."""
    config = read_json(folder / "config.json")
    shape = shape_of(config)
    quantized = config["quantization"]
    assert isinstance(quantized, dict)
    assert set(quantized) <= QUANTIZATION_KEYS, "TensorRT-LLM refuses a key that it does not know"
    ranks = [read_file(folder / f"rank{rank}.safetensors") for rank in range(shape.tp * shape.pp)]
    ranks = [{name: rank[name] for name in rank if not name.endswith(ignored)} for rank in ranks]
    assert len(list(folder.glob("*.safetensors"))) == len(ranks)
    groups = [ranks[start : start + shape.tp] for start in range(0, len(ranks), shape.tp)]
    linears: dict[str, Part] = {}
    plain: dict[str, Floats] = {}
    kv: list[float] = []
    for i, (group, local) in enumerate(places(shape.layers, shape.pp)):
        read_layer(
            groups[group], f"transformer.layers.{local}.", f"model.layers.{i}.", shape, config, linears, plain, kv
        )
    read_ends(groups, shape, config, plain)
    assert not any(ranks), f"the format has no {[sorted(rank) for rank in ranks]}"
    return Loaded(config=config, linears=linears, plain=plain, kv=tuple(kv))


def places(layers: int, groups: int) -> list[tuple[int, int]]:
    """(group, number within it) of each layer: in order, the first groups one more where they do not divide."""
    sizes = [layers // groups + (group < layers % groups) for group in range(groups)]
    return [(group, local) for group, size in enumerate(sizes) for local in range(size)]


def shape_of(config: Mapping[str, object]) -> Shape:
    mapping = config["mapping"]
    assert isinstance(mapping, dict)
    tp, pp = mapping["tp_size"], mapping["pp_size"]
    assert mapping["world_size"] == tp * pp
    assert config["architecture"] == "LlamaForCausalLM"
    return Shape(
        hidden=number(config, "hidden_size"),
        inner=number(config, "intermediate_size"),
        layers=number(config, "num_hidden_layers"),
        heads=number(config, "num_attention_heads"),
        kv_heads=number(config, "num_key_value_heads"),
        width=number(config, "head_size"),
        vocab=number(config, "vocab_size"),
        tp=tp,
        pp=pp,
    )


def read_layer(
    ranks: Sequence[dict[str, Array]],
    theirs: str,
    ours: str,
    shape: Shape,
    config: Mapping[str, object],
    linears: dict[str, Part],
    plain: dict[str, Floats],
    kv: list[float],
) -> None:
    for norm, name in (("input_layernorm", "input_layernorm"), ("post_layernorm", "post_attention_layernorm")):
        plain[f"{ours}{name}.weight"] = replicated(ranks, f"{theirs}{norm}.weight", (shape.hidden,), config)
    quantized = config["quantization"]
    assert isinstance(quantized, dict)
    for name, hf_name in LINEARS.items():
        parts = [read_part(rank, theirs + name, shape.local(name), quantized) for rank in ranks]
        linears[ours + hf_name] = join(parts, along_inputs=name in BY_COLUMNS)
    fused = [read_part(rank, f"{theirs}attention.qkv", shape.local("attention.qkv"), quantized) for rank in ranks]
    for hf_name, parts in split_qkv(fused, shape).items():
        linears[ours + hf_name] = join(parts, along_inputs=False)
    if quantized["kv_cache_quant_algo"] is not None:
        scales = {scalar(rank, f"{theirs}attention.kv_cache_scaling_factor", (1,)) for rank in ranks}
        assert len(scales) == 1
        kv += scales


def read_part(rank: dict[str, Array], name: str, shape: tuple[int, int], quantized: Mapping[str, object]) -> Part:
    n, k = shape
    algorithm, single, pre_quant_scale = quantized["quant_algo"], [], None
    if algorithm == "FP8":
        codes = typed(rank, f"{name}.weight", "F8_E4M3", (n, k)).astype(np.float32)
        assert np.isfinite(codes).all()
        single.append(scalar(rank, f"{name}.weights_scaling_factor", (1,)))
        scales = np.full((n, 1), single[0], np.float32)
        weights = codes * scales
    else:
        assert algorithm in ("W4A16_AWQ", "W4A8_AWQ")
        group_size = quantized["group_size"]
        assert isinstance(group_size, int) and quantized["has_zero_point"] is False and quantized["pre_quant_scale"]
        codes = unpack_rows(typed(rank, f"{name}.weight", "I8", (n // 2, k))).astype(np.float32)
        scales = typed(rank, f"{name}.weights_scaling_factor", "F32", (n, k // group_size)).astype(np.float32)
        weights = codes * spread(scales, k)
        pre_quant_scale = rank.pop(f"{name}.prequant_scaling_factor").astype(np.float32)
        assert pre_quant_scale.shape == (k,) and (pre_quant_scale > 0).all()
    if algorithm == "W4A8_AWQ":
        single.append(scalar(rank, f"{name}.weights_scaling_factor_2", (1,)))
    if algorithm in ("FP8", "W4A8_AWQ"):
        single.append(scalar(rank, f"{name}.activation_scaling_factor", (1,)))
    return Part(codes=codes, scales=scales, weights=weights, single=tuple(single), pre_quant_scale=pre_quant_scale)


def split_qkv(fused: Sequence[Part], shape: Shape) -> dict[str, list[Part]]:
    """q, k and v of each rank that holds something new: copies of a key or value head must be copies."""
    q, kv = shape.heads // shape.tp * shape.width, shape.local_kv_heads * shape.width
    found = {
        "self_attn.q_proj": [part.rows(0, q) for part in fused],
        "self_attn.k_proj": [part.rows(q, q + kv) for part in fused],
        "self_attn.v_proj": [part.rows(q + kv, q + 2 * kv) for part in fused],
    }
    copies = max(1, shape.tp // shape.kv_heads)
    for name in ("self_attn.k_proj", "self_attn.v_proj"):
        parts = found[name]
        for i, part in enumerate(parts):
            np.testing.assert_array_equal(part.codes, parts[i // copies * copies].codes, err_msg=name)
            np.testing.assert_array_equal(part.scales, parts[i // copies * copies].scales, err_msg=name)
        found[name] = parts[::copies]
    return found


def join(parts: Sequence[Part], *, along_inputs: bool) -> Part:
    """The ranks' shares side by side. What is not split must be the same on every rank."""
    first = parts[0]
    assert all(part.single == first.single for part in parts)
    axis = 1 if along_inputs else 0
    one_scale_a_row = first.scales.shape[1] == 1 and first.pre_quant_scale is None
    if along_inputs and one_scale_a_row:
        assert all((part.scales == first.scales).all() for part in parts)
        scales = first.scales
    else:
        scales = np.concatenate([part.scales for part in parts], axis)
    pre_quant_scale = first.pre_quant_scale
    if pre_quant_scale is not None:
        found = [part.pre_quant_scale for part in parts if part.pre_quant_scale is not None]
        if along_inputs:
            pre_quant_scale = np.concatenate(found)
        else:
            assert all((other == pre_quant_scale).all() for other in found)
    return Part(
        codes=np.concatenate([part.codes for part in parts], axis),
        scales=scales,
        weights=np.concatenate([part.weights for part in parts], axis),
        single=first.single,
        pre_quant_scale=pre_quant_scale,
    )


def replicated(
    ranks: Sequence[dict[str, Array]], name: str, shape: tuple[int, ...], config: Mapping[str, object]
) -> Floats:
    found = [typed(rank, name, FLOATS[str(config["dtype"])], shape) for rank in ranks]
    assert all((other == found[0]).all() for other in found), name
    return found[0].astype(np.float32)


def read_ends(
    groups: Sequence[Sequence[dict[str, Array]]], shape: Shape, config: Mapping[str, object], plain: dict[str, Floats]
) -> None:
    """The embedding is the first group's; the last norm and lm_head are the last's."""
    plain["model.norm.weight"] = replicated(groups[-1], "transformer.ln_f.weight", (shape.hidden,), config)
    assert config["embedding_sharding_dim"] == 0
    embedding = "transformer.vocab_embedding.weight"
    if config["use_parallel_embedding"]:
        plain["model.embed_tokens.weight"] = by_vocabulary(groups[0], embedding, shape, config)
    else:
        whole = (shape.vocab, shape.hidden)
        plain["model.embed_tokens.weight"] = replicated(groups[0], embedding, whole, config)
    if config["share_embedding_table"]:  # one table, of a model that one group holds; no copy in the file
        assert shape.pp == 1
    else:
        plain["lm_head.weight"] = by_vocabulary(groups[-1], "lm_head.weight", shape, config)


def by_vocabulary(ranks: Sequence[dict[str, Array]], name: str, shape: Shape, config: Mapping[str, object]) -> Floats:
    """A table split by rows, filled up with zeros to a multiple of the ranks."""
    rows = -(-shape.vocab // shape.tp)
    parts = [typed(rank, name, FLOATS[str(config["dtype"])], (rows, shape.hidden)) for rank in ranks]
    table = np.concatenate(parts).astype(np.float32)
    assert not table[shape.vocab :].any()
    return table[: shape.vocab]
