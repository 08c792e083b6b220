"""The Llama decoder as an ONNX graph, written like the model (transformers modeling_llama.py).

Inputs and outputs follow onnxruntime-genai: input_ids and attention_mask, past_key_values.{i}.key/.value and
present.{i}.key/.value [B, KV, S, hd], logits. Past and present are bound to the same buffers of length S.

Three graphs read one data file; they differ in the tokens that have logits, `Rows`. Where that is not every token,
already the last layer's matmuls after attention run for those tokens alone.
"""

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from edgeforge.backends.onnx.graph import Graph
from edgeforge.backends.onnx.layout import FINAL_NORM, Matrix, WeightLayout, norm_name
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.planning import BuildPlan

Rows = Literal["last", "all", "asked"]
"""asked: an input, logits_from int64 [1], says from which token on; -1 is the last one, as in Slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Positions:
    """What attention needs beside the activations, the same in every layer."""

    lengths: tuple[ir.Value, ir.Value]
    rotary: tuple[ir.Value, ir.Value]
    each: ir.Value | None
    """Every new token's position, int64 [B, T]; only where the attention operator cannot rotate by itself."""


def decoder(plan: BuildPlan, layout: WeightLayout, data_file: str, *, rows: Rows) -> Graph:
    """The whole graph; `rows`: which tokens have logits."""
    g = Graph(data_file)
    a = plan.architecture
    ids = g.input("input_ids", "i64", ("batch_size", "sequence_length"))
    mask = g.input("attention_mask", "i64", ("batch_size", "total_sequence_length"))
    starts: dict[Rows, ir.Value] = {}
    if rows == "last":
        starts[rows] = g.constant([-1])
    elif rows == "asked":
        starts[rows] = g.input("logits_from", "i64", (1,))
    positions = _positions(g, layout, ids, mask, separate=not _rotates_inside(a))
    x, residual = _embed(g, layout.matrices["embedding"], ids), None
    for layer in range(a.num_hidden_layers):
        with g.scope(f"layers.{layer}"):
            start = starts.get(rows) if layer == a.num_hidden_layers - 1 else None
            x, residual = _decoder_layer(g, plan, layout, positions, layer, x, residual, start=start)
    assert residual is not None
    x, _ = g.add_rms_norm(x, residual, layout.matrices[FINAL_NORM], a.rms_norm_eps)
    with g.scope("lm_head"):
        logits = _linear(g, x, layout.matrices["lm_head"])
    lengths: dict[Rows, int | str] = {"last": 1, "all": "sequence_length", "asked": "logits_length"}
    g.output(logits, "logits", plan.target.activations, ("batch_size", lengths[rows], a.vocab_size))
    return g


def _rotates_inside(architecture: LlamaArchitecture) -> bool:
    """GroupQueryAttention's own rotary embedding wants head sizes in multiples of 16."""
    return architecture.head_dim % 16 == 0


def _positions(g: Graph, layout: WeightLayout, ids: ir.Value, mask: ir.Value, *, separate: bool) -> _Positions:
    with g.scope("positions"):
        last_position = g.to_int32(g.subtract(g.sum(mask, axis=1), g.constant([1])))
        lengths = (last_position, g.to_int32(g.dimension(mask, 1)))
        each = None
        if separate:
            new = g.dimension(ids, 1)
            first = g.subtract(g.sum(mask, axis=1), new)
            each = g.add(g.reshape(first, (-1, 1)), g.range(new))
    return _Positions(lengths=lengths, rotary=(g.stored(layout.cos), g.stored(layout.sin)), each=each)


def _embed(g: Graph, table: Matrix, ids: ir.Value) -> ir.Value:
    with g.scope("embedding"):
        return g.gather(g.stored(table.weight), ids) if table.scheme.is_float else g.gather_quantized(table, ids)


def _decoder_layer(
    g: Graph,
    plan: BuildPlan,
    layout: WeightLayout,
    positions: _Positions,
    layer: int,
    x: ir.Value,
    residual: ir.Value | None,
    *,
    start: ir.Value | None,
) -> tuple[ir.Value, ir.Value]:
    """(the MLP's output, the residual it is to be added to): the addition is fused into the next norm.

    `start`: the first token that is needed after this layer; None, if all are.
    """
    epsilon = plan.architecture.rms_norm_eps

    def weights(part: str) -> Matrix:
        return layout.matrices[f"layers.{layer}.{part}"]

    norm = layout.matrices[norm_name(layer, "input_layernorm")]
    if residual is None:
        x, residual = g.rms_norm(x, norm, epsilon), x
    else:
        x, residual = g.add_rms_norm(x, residual, norm, epsilon)
    with g.scope("attention"):
        x = _attention(g, plan, positions, layer, _linear(g, x, weights("qkv")))
        if start is not None:
            x, residual = g.tokens_from(x, start), g.tokens_from(residual, start)
        x = _linear(g, x, weights("o"))
    norm = layout.matrices[norm_name(layer, "post_attention_layernorm")]
    x, residual = g.add_rms_norm(x, residual, norm, epsilon)
    with g.scope("mlp"):
        gate, up = g.split(_linear(g, x, weights("gate_up")), 2 * (plan.architecture.intermediate_size,))
        x = _linear(g, g.mul(g.silu(gate), up), weights("down"))
    return x, residual


def _attention(g: Graph, plan: BuildPlan, positions: _Positions, layer: int, qkv: ir.Value) -> ir.Value:
    a, dtype = plan.architecture, plan.target.kv_cache
    names = ("key", "value")
    shape = ("batch_size", a.num_key_value_heads, "max_sequence_length", a.head_dim)
    key, value = (g.input(f"past_key_values.{layer}.{name}", dtype, shape) for name in names)
    heads = (a.num_attention_heads, a.num_key_value_heads)
    if positions.each is None:
        x, *present = g.attention((qkv, None, None), (key, value), positions.lengths, positions.rotary, heads)
    else:
        q, k, v = g.split(qkv, [n * a.head_dim for n in (heads[0], heads[1], heads[1])])
        q, k = (g.rotate(part, positions.each, positions.rotary) for part in (q, k))
        x, *present = g.attention((q, k, v), (key, value), positions.lengths, None, heads)
    for name, cache in zip(names, present, strict=True):
        g.output(cache, f"present.{layer}.{name}", dtype, shape)
    return x


def _linear(g: Graph, x: ir.Value, matrix: Matrix) -> ir.Value:
    """x [..., K] @ W.T for W [N, K] in any scheme.

    With offsets, W = codes * scales + offsets: the second term is the offsets times the activations' group sums.
    """
    if matrix.scheme.is_float:
        return g.matmul_transposed(x, g.stored(matrix.weight))
    y = g.matmul_nbits(x, matrix)
    if matrix.offsets is None:
        return y
    assert matrix.scheme.group_size is not None
    groups = matrix.offsets.shape[1]
    sums = g.sum(g.reshape(x, (0, -1, groups, matrix.scheme.group_size)), axis=3)
    return g.add(y, g.matmul_transposed(sums, g.stored(matrix.offsets)))
