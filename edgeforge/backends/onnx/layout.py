"""Where every byte of `model.onnx.data` goes, known from the plan before the first weight is read.

Shape letters: N out_features, K in_features, G groups per row, B bytes per block, V vocabulary, D hidden, P positions.

A `Matrix` is what one matmul reads; q, k and v are the rows of one matrix, gate and up of another. A `Placement` says
which rows of which matrix a checkpoint tensor fills. Everything is row-major by out_feature, so a range of a tensor's
rows is one contiguous range of each slot.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from edgeforge.model.architecture import Linear
from edgeforge.planning import EMBEDDING, BuildPlan, block_name, fused_blocks, scale_copies
from edgeforge.quantization.scheme import HIGH_BITS, LOW_BITS, SPLIT_BITS, QuantizationScheme

ALIGNMENT = 64
ITEM_BYTES = {"u8": 1, "f16": 2, "f32": 4}

FINAL_NORM = "model.norm.weight"
COS, SIN = "rotary.cos", "rotary.sin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One array in the data file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        return self.size // self.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """The arrays of one weight matrix [N, K].

    Quantized: `weight` u8 [N, C, B], `scales` [N, C], and `zero_points` u8 [N, ceil(C * bits / 8)] or `offsets` [N, G]
    or neither, with C = G * scale_copies blocks in a row. Float schemes (and norms, N alone): `weight` only. More than
    one copy of each scale and zero point makes blocks shorter than groups (`edgeforge.planning.scale_copies`).

    Codes of 6 bits (`packing.split`) are in `weight` with their 4 high bits, under scales four times the tensor's, and
    in `low` with the others, whose zero points are stored even where those of the codes are none.
    """

    scheme: QuantizationScheme
    out_features: int
    in_features: int
    weight: Slot
    scales: Slot | None = None
    zero_points: Slot | None = None
    offsets: Slot | None = None
    scale_copies: int = 1
    low: "LowBits | None" = None

    @property
    def block_size(self) -> int:
        """Weights per stored scale, ONNX Runtime's block_size."""
        assert self.scheme.group_size is not None
        return self.scheme.group_size // self.scale_copies


@dataclass(frozen=True, slots=True, kw_only=True)
class LowBits:
    """The lowest 2 of 6 bits: `weight` u8 [N, C, B / 2], `zero_points` u8 [N, ceil(C / 4)]."""

    weight: Slot
    zero_points: Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A checkpoint tensor's row 0 is row `first_row` of `matrix`."""

    matrix: Matrix
    first_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayout:
    """The data file: `placements` by checkpoint tensor name, `matrices` by graph name, and its size."""

    placements: Mapping[str, Placement]
    matrices: Mapping[str, Matrix]
    cos: Slot
    sin: Slot
    size: int


class _Allocator:
    """Hands out aligned offsets in the order asked for."""

    def __init__(self, float_dtype: str) -> None:
        self.float_dtype = float_dtype
        self.end = 0

    def slot(self, name: str, dtype: str, *shape: int) -> Slot:
        slot = Slot(name=name, dtype=dtype, shape=shape, offset=-(-self.end // ALIGNMENT) * ALIGNMENT)
        self.end = slot.offset + slot.size
        return slot

    def vector(self, name: str, length: int) -> Matrix:
        scheme = QuantizationScheme(name=self.float_dtype, bits=8 * ITEM_BYTES[self.float_dtype])
        weight = self.slot(name, self.float_dtype, length)
        return Matrix(scheme=scheme, out_features=length, in_features=1, weight=weight)

    def matrix(self, name: str, scheme: QuantizationScheme, n: int, k: int, scale_copies: int = 1) -> Matrix:
        if scheme.group_size is None:
            weight = self.slot(f"{name}.weight", self.float_dtype, n, k)
            return Matrix(scheme=scheme, out_features=n, in_features=k, weight=weight)
        g = scheme.groups(k)
        bits = HIGH_BITS if scheme.bits == SPLIT_BITS else scheme.bits
        blocks, size = g * scale_copies, scheme.group_size // scale_copies
        has_zero_points = not (scheme.symmetric or scheme.offset)

        def codes(name: str, bits: int) -> Slot:
            return self.slot(name, "u8", n, blocks, size * bits // 8)

        def zeros(name: str, bits: int) -> Slot:
            return self.slot(name, "u8", n, -(-blocks * bits // 8))

        def low() -> LowBits:
            return LowBits(
                weight=codes(f"{name}.low_weight", LOW_BITS), zero_points=zeros(f"{name}.low_zero_points", LOW_BITS)
            )

        return Matrix(
            scheme=scheme,
            out_features=n,
            in_features=k,
            weight=codes(f"{name}.weight", bits),
            scales=self.slot(f"{name}.scales", self.float_dtype, n, blocks),
            zero_points=zeros(f"{name}.zero_points", bits) if has_zero_points else None,
            offsets=self.slot(f"{name}.offsets", self.float_dtype, n, g) if scheme.offset else None,
            scale_copies=scale_copies,
            low=low() if scheme.bits == SPLIT_BITS else None,
        )


def norm_name(layer: int, which: str) -> str:
    return f"model.layers.{layer}.{which}.weight"


def weight_layout(plan: BuildPlan) -> WeightLayout:
    """Offsets and shapes of everything in the data file."""
    a = plan.architecture
    allocate = _Allocator(plan.target.activations)
    matrices: dict[str, Matrix] = {}
    placements: dict[str, Placement] = {}

    def place_vector(name: str, length: int) -> None:
        matrices[name] = allocate.vector(name, length)
        placements[name] = Placement(matrix=matrices[name], first_row=0)

    def place_block(name: str, block: Sequence[Linear]) -> None:
        n, k = sum(linear.out_features for linear in block), block[0].in_features
        scheme = _shared_scheme(plan, block)
        copies = scale_copies(block_name(block[0].role), scheme, k, plan.target)
        matrices[name] = allocate.matrix(name, scheme, n, k, copies)
        first_row = 0
        for linear in block:
            placements[linear.name] = Placement(matrix=matrices[name], first_row=first_row)
            first_row += linear.out_features

    matrices["embedding"] = allocate.matrix("embedding", plan.schemes[EMBEDDING], a.vocab_size, a.hidden_size)
    placements[EMBEDDING] = Placement(matrix=matrices["embedding"], first_row=0)
    blocks = {layer: list(group) for layer, group in groupby(fused_blocks(a), key=lambda block: block[0].layer)}
    for layer in range(a.num_hidden_layers):
        place_vector(norm_name(layer, "input_layernorm"), a.hidden_size)
        for block in blocks[layer]:
            place_block(f"layers.{layer}.{block_name(block[0].role)}", block)
        place_vector(norm_name(layer, "post_attention_layernorm"), a.hidden_size)
    place_vector(FINAL_NORM, a.hidden_size)
    matrices["lm_head"] = matrices["embedding"]  # unless a head of its own takes its place
    for block in blocks.get(None, ()):
        place_block("lm_head", block)
    cos, sin = (allocate.slot(name, allocate.float_dtype, plan.target.context, a.head_dim // 2) for name in (COS, SIN))
    return WeightLayout(placements=placements, matrices=matrices, cos=cos, sin=sin, size=allocate.end)


def _shared_scheme(plan: BuildPlan, block: Sequence[Linear]) -> QuantizationScheme:
    names = [linear.name for linear in block]
    schemes = {plan.schemes[name] for name in names}
    if len(schemes) != 1:
        raise ValueError(f"{', '.join(names)} are one matmul in the graph and need one scheme, the plan has {schemes}")
    return schemes.pop()
