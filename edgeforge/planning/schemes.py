"""Which scheme each weight gets: the target's, unless the checkpoint's own integers can be carried over as they are.

One scheme per linear, plus one for the embedding table (which is also the output head's where the two are tied).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

from edgeforge.errors import UnusableInput, UsageError
from edgeforge.hardware import BACKENDS, SCHEMES, Target
from edgeforge.model.architecture import Linear, LlamaArchitecture
from edgeforge.model.checkpoint import StoredGrid
from edgeforge.quantization.scheme import GROUP_SIZES, SPLIT_BITS, QuantizationScheme, effective_group_size

EMBEDDING = "model.embed_tokens.weight"
# Linears that share an input, and that backends multiply as one matrix: they must share a scheme.
FUSED: Mapping[str, str] = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}


def choose_schemes(
    architecture: LlamaArchitecture, target: Target, stored: Mapping[str, StoredGrid]
) -> dict[str, QuantizationScheme]:
    """A scheme for the embedding and for every linear, in the architecture's order.

    `stored` holds the integer grids that the checkpoint's weights already lie on, by tensor name. Raises UnusableInput
    where the backend needs whole groups and no size divides every row.
    """
    target = _with_whole_groups(architecture, target)
    schemes = {EMBEDDING: _embedding_scheme(architecture, target, stored.get(EMBEDDING))}
    for block in fused_blocks(architecture):
        carried = {_carried(linear, target, stored.get(linear.name)) for linear in block}
        shared = carried.pop() if len(carried) == 1 else None
        for linear in block:
            schemes[linear.name] = shared or _fresh(_wanted(linear, target), linear.in_features, target)
    return schemes


def _with_whole_groups(architecture: LlamaArchitecture, target: Target) -> Target:
    """Backends with one group size for the whole model get the largest, up to the asked one, that divides every row."""
    facts = SCHEMES[target.scheme]
    if not BACKENDS[target.backend].whole_groups or facts.is_float or facts.granularity != "group":
        return target
    rows = sorted({linear.in_features for linear in architecture.linears() if linear.role != "lm_head"})
    for size in sorted(GROUP_SIZES, reverse=True):
        if size <= (facts.group_size or target.group_size) and not any(row % size for row in rows):
            return replace(target, group_size=size)
    raise UnusableInput(
        f"backend {target.backend} needs one group size that divides {' and '.join(map(str, rows))}, and none does",
        hint="use --scheme fp8, or --backend onnx, which pads the last group of a row",
    )


def fused_blocks(architecture: LlamaArchitecture) -> Iterator[tuple[Linear, ...]]:
    """The linears in order, those of one fused matrix together: [q, k, v], [o], [gate, up], [down], ..., [lm_head]."""
    return iter(_blocks(architecture))


@lru_cache(maxsize=8)
def _blocks(architecture: LlamaArchitecture) -> tuple[tuple[Linear, ...], ...]:
    grouped = groupby(architecture.linears(), key=lambda linear: (linear.layer, block_name(linear.role)))
    return tuple(tuple(members) for _, members in grouped)


def block_name(role: str) -> str:
    """The fused matrix that a role belongs to: qkv, gate_up, or the role itself."""
    return FUSED.get(role, role)


def _wanted(linear: Linear, target: Target) -> str:
    """The scheme's name before anything is carried over. A float target is float throughout."""
    if linear.role == "lm_head" and not SCHEMES[target.scheme].is_float:
        return target.lm_head
    return target.scheme


def _fresh(name: str, in_features: int, target: Target) -> QuantizationScheme:
    facts = SCHEMES[name]
    if facts.is_float:
        return QuantizationScheme(name=name, bits=facts.bits)
    size = facts.group_size or effective_group_size(in_features, target.group_size)
    return QuantizationScheme(
        name=name,
        bits=facts.bits,
        group_size=size if facts.granularity == "group" else None,
        symmetric=facts.symmetric or target.symmetric,
        scale_dtype=BACKENDS[target.backend].scale_dtype or target.activations,
        code_format=facts.code_format,
        granularity=facts.granularity,
        activations=facts.activations,
    )


def _embedding_scheme(architecture: LlamaArchitecture, target: Target, grid: StoredGrid | None) -> QuantizationScheme:
    wanted = target.scheme if SCHEMES[target.scheme].is_float else target.embedding
    # A gathered row is dequantized with integer zero points only, so a grid with float offsets is not carried over.
    if grid is not None and not grid.offset:
        carried = _as_scheme(grid, wanted, architecture.hidden_size, target)
        if carried is not None:
            return carried
    fresh = _fresh(wanted, architecture.hidden_size, target)
    if fresh.group_size is not None and architecture.hidden_size % fresh.group_size:
        return _fresh(target.activations, architecture.hidden_size, target)
    return fresh


def _carried(linear: Linear, target: Target, grid: StoredGrid | None) -> QuantizationScheme | None:
    return None if grid is None else _as_scheme(grid, _wanted(linear, target), linear.in_features, target)


def _as_scheme(grid: StoredGrid, wanted: str, in_features: int, target: Target) -> QuantizationScheme | None:
    """The stored grid as a scheme, if it is no larger than what was asked for and the rows divide into its groups."""
    asked = SCHEMES[wanted]
    if target.backend != "onnx" or asked.code_format != "int":
        return None  # others hold neither ggml's groups of 32 with offsets, nor unlike linears
    if asked.is_float or grid.bits > asked.bits or grid.group_size not in GROUP_SIZES or in_features % grid.group_size:
        return None
    for name, facts in SCHEMES.items():
        if (facts.bits, facts.activations) == (grid.bits, "none") and facts.code_format == "int":
            return QuantizationScheme(
                name=name,
                bits=grid.bits,
                group_size=grid.group_size,
                symmetric=not grid.offset,
                offset=grid.offset,
                scale_dtype=target.activations,
            )
    return None


def lies_on(grid: StoredGrid | None, scheme: QuantizationScheme) -> bool:
    """Whether codes on the checkpoint's grid are codes of the scheme."""
    if scheme.code_format != "int" or scheme.activations != "none":
        return False
    if grid is None or (grid.bits, grid.group_size, grid.offset) != (scheme.bits, scheme.group_size, scheme.offset):
        return False
    return scheme.offset or scheme.symmetric


def check_rotation(architecture: LlamaArchitecture, target: Target, stored: Mapping[str, StoredGrid]) -> None:
    """UsageError where the target rotates linears whose stored integers it would otherwise keep as they are."""
    if not (target.rotate and stored):
        return
    schemes = choose_schemes(architecture, target, stored)
    kept = [name for name, scheme in schemes.items() if name != EMBEDDING and lies_on(stored.get(name), scheme)]
    if kept:
        raise UsageError(
            f"the checkpoint holds {kept[0]} as the integers that would be stored, which a rotation would round anew",
            hint="leave out --rotate, or build from the model that the file was quantized from",
        )


def scale_copies(block: str, scheme: QuantizationScheme, in_features: int, target: Target) -> int:
    """How many times each scale of a fused matrix is stored, side by side.

    onnxruntime's CPU kernels round activations to int8 in blocks as long as the weights', and smaller blocks round
    less. Per byte, q, k and v lose most to it: halving their blocks takes the demo's KL divergence from 0.0033 to
    0.0028 for 1 % of its decode speed (halving all of them: 0.0022, for 17 %).
    """
    size = scheme.group_size
    rounds_activations = target.profile.kind == "cpu" and target.activations == "f32"
    # Kernels for 2 bits run blocks of 32 and more.
    smallest = 2 * GROUP_SIZES[0] if scheme.bits == SPLIT_BITS else GROUP_SIZES[0]
    halves = block == "qkv" and size is not None and size > smallest and in_features % size == 0
    return 2 if rounds_activations and halves else 1
