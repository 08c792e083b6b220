"""Which rows and columns of each checkpoint tensor go to which tensor of which rank's file, known from the plan alone.

Pipeline groups hold contiguous layers. The ranks of a group share every matrix: q, k, v, gate, up, embedding and output
head by rows, o and down by columns. A rank's rows of q, k and v lie under each other in one matrix. Shape letters: N
out_features, K in_features, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from edgeforge.model.architecture import Linear, LlamaArchitecture
from edgeforge.planning import EMBEDDING, BuildPlan, fused_blocks
from edgeforge.quantization.scheme import QuantizationScheme

LM_HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
NORMS: Mapping[str, str] = {
    "input_layernorm": "input_layernorm",
    "post_layernorm": "post_attention_layernorm",
}
QKV = "attention.qkv"
# `fc` is what the activation is applied to, the gate; `gate` is what it is multiplied with.
MODULES: Mapping[str, str] = {
    "q": QKV,
    "k": QKV,
    "v": QKV,
    "o": "attention.dense",
    "gate": "mlp.fc",
    "up": "mlp.gate",
    "down": "mlp.proj",
}
BY_COLUMNS = ("o", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A weight in one rank's file, and what belongs to it.

    name      in the file, without ".weight"
    shape     [N, K] of the rank's part, or [length] of a norm
    scheme    None where it is stored in the model's float type
    sources   the checkpoint tensors in it, from the top
    columns   [first, stop) of the sources' columns
    """

    name: str
    shape: tuple[int, ...]
    scheme: QuantizationScheme | None
    sources: tuple[str, ...]
    columns: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Rows [first, stop) of a checkpoint tensor, cut to the matrix's columns, are rows `row` onwards of `matrix`."""

    rank: int
    matrix: Matrix
    first: int
    stop: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`ranks`: each file's matrices, in file order. `shares` by checkpoint tensor; of key and value heads that several
    ranks hold, every copy. `layers`: each layer's (first rank of its group, prefix of its names).
    """

    ranks: tuple[tuple[Matrix, ...], ...]
    shares: Mapping[str, tuple[Share, ...]]
    layers: tuple[tuple[int, str], ...]


def pipeline_layers(layers: int, groups: int) -> tuple[range, ...]:
    """The layers of each pipeline group, as tensorrt_llm.Mapping.pp_layers has them: the first groups take one more."""
    size, more = divmod(layers, groups)
    starts = [group * size + min(group, more) for group in range(groups + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(starts))


def local_kv_heads(architecture: LlamaArchitecture, tensor_parallel: int) -> int:
    """A rank's key and value heads: its share, or a copy of one where there are more ranks than heads."""
    return max(1, architecture.num_key_value_heads // tensor_parallel)


def padded_vocabulary(architecture: LlamaArchitecture, tensor_parallel: int) -> int:
    """V as stored: the next multiple of the ranks (tensorrt_llm._utils.pad_vocab_size)."""
    return math.ceil(architecture.vocab_size / tensor_parallel) * tensor_parallel


def make_layout(plan: BuildPlan) -> Layout:
    """Where everything goes."""
    a, target = plan.architecture, plan.target
    stages = pipeline_layers(a.num_hidden_layers, target.pipeline_parallel)
    linears: dict[int | None, list[Linear]] = {}
    for linear in a.linears():
        linears.setdefault(linear.layer, []).append(linear)
    ranks: list[tuple[Matrix, ...]] = []
    shares: dict[str, list[Share]] = {}
    for stage, layers in enumerate(stages):
        for tensor_rank in range(target.tensor_parallel):
            held = list(_rank(plan, stage, len(stages), layers, linears, tensor_rank))
            ranks.append(tuple(dict.fromkeys(share.matrix for _, share in held)))
            for name, share in held:
                shares.setdefault(name, []).append(share)
    return Layout(
        ranks=tuple(ranks),
        shares={name: tuple(found) for name, found in shares.items()},
        layers=tuple(
            (stage * target.tensor_parallel, _prefix(i))
            for stage, layers in enumerate(stages)
            for i in range(len(layers))
        ),
    )


def _prefix(layer_of_stage: int) -> str:
    return f"transformer.layers.{layer_of_stage}."


def _rank(
    plan: BuildPlan,
    stage: int,
    stages: int,
    layers: range,
    linears: Mapping[int | None, Sequence[Linear]],
    tensor_rank: int,
) -> Iterator[tuple[str, Share]]:
    """(checkpoint tensor, share) of everything on one rank, in file order."""
    a, tp = plan.architecture, plan.target.tensor_parallel
    rank, hidden = stage * tp + tensor_rank, a.hidden_size
    if stage == 0:
        yield _by_vocabulary(plan, EMBEDDING, "transformer.vocab_embedding", rank, tensor_rank)
    for i, layer in enumerate(layers):
        norms = {f"{_prefix(i)}{ours}": f"model.layers.{layer}.{theirs}.weight" for ours, theirs in NORMS.items()}
        for name, source in norms.items():
            yield source, _whole(rank, name, source, (hidden,))
        yield from _layer(plan, linears[layer], _prefix(i), rank, tensor_rank)
    if stage == stages - 1:
        yield FINAL_NORM, _whole(rank, "transformer.ln_f", FINAL_NORM, (hidden,))
        # Tied models have it too, as a second copy: TensorRT finds equal constants and keeps one.
        head = EMBEDDING if a.tie_word_embeddings else LM_HEAD
        yield _by_vocabulary(plan, head, "lm_head", rank, tensor_rank)


def _whole(rank: int, name: str, source: str, shape: tuple[int, ...]) -> Share:
    matrix = Matrix(name=name, shape=shape, scheme=None, sources=(source,), columns=None)
    return Share(rank=rank, matrix=matrix, first=0, stop=shape[0], row=0)


def _by_vocabulary(plan: BuildPlan, source: str, name: str, rank: int, tensor_rank: int) -> tuple[str, Share]:
    """A rank's rows of the embedding or the output head. The last rank's may end early: the rest is padding."""
    a, tp = plan.architecture, plan.target.tensor_parallel
    rows = padded_vocabulary(a, tp) // tp
    share = _whole(rank, name, source, (rows, a.hidden_size))
    return source, replace(share, first=tensor_rank * rows, stop=min((tensor_rank + 1) * rows, a.vocab_size))


def _layer(
    plan: BuildPlan, linears: Sequence[Linear], prefix: str, rank: int, tensor_rank: int
) -> Iterator[tuple[str, Share]]:
    a, tp = plan.architecture, plan.target.tensor_parallel
    for module in dict.fromkeys(MODULES[linear.role] for linear in linears):
        members = [linear for linear in linears if MODULES[linear.role] == module]
        parts = [_rows(a, linear, tp, tensor_rank) for linear in members]
        k = members[0].in_features
        columns = (tensor_rank * k // tp, (tensor_rank + 1) * k // tp) if members[0].role in BY_COLUMNS else (0, k)
        scheme = plan.schemes[members[0].name]
        matrix = Matrix(
            name=prefix + module,
            shape=(sum(len(rows) for rows in parts), columns[1] - columns[0]),
            scheme=None if scheme.is_float else scheme,
            sources=tuple(linear.name for linear in members),
            columns=columns,
        )
        row = 0
        for linear, rows in zip(members, parts, strict=True):
            yield linear.name, Share(rank=rank, matrix=matrix, first=rows.start, stop=rows.stop, row=row)
            row += len(rows)


def _rows(architecture: LlamaArchitecture, linear: Linear, tensor_parallel: int, tensor_rank: int) -> range:
    """The rank's rows of a linear. The copies of a key or value head are neighbours, as dup_kv_weight has them."""
    n = linear.out_features
    if linear.role in BY_COLUMNS:
        return range(n)
    parts, part = tensor_parallel, tensor_rank
    if linear.role in ("k", "v"):
        parts = min(tensor_parallel, architecture.num_key_value_heads)
        part = tensor_rank * parts // tensor_parallel
    return range(part * n // parts, (part + 1) * n // parts)


def shared_inputs(plan: BuildPlan) -> dict[str, tuple[str, ...]]:
    """For each linear's weight, all that read the same input: they are given one scale."""
    return {
        linear.name: tuple(member.name for member in block)
        for block in fused_blocks(plan.architecture)
        for linear in block
    }
