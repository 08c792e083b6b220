"""How a weight matrix is stored: the scheme, the neutral tensor that holds it, and its inverse.

Shape letters: N out_features, K in_features, G scales per row (ceil(K / group_size); 1 for a channel or a tensor).

A quantized weight is `w[n, k] = (codes[n, k] - zero_points[n, g]) * scales[n, g]` with g = k // group_size. Integer
codes and zero points are *signed* (int4: -8..7, int6: -32..31, int8: -128..127); packers add 2**(bits-1) where their
consumer wants unsigned bytes. ggml's Q4_1 stores `scale * code + offset` with a fractional zero point; such tensors
carry `offsets` instead of zero points, so that nothing is rounded twice: `w = codes * scales + offsets`. Codes may be
numbers of a small floating-point format instead: e4m3 (FP8, arXiv 2209.05433) or e2m1 (NVFP4, whose scales have a scale
of their own: `w = codes * scales * tensor_scale`).
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

GROUP_SIZES = (16, 32, 64, 128, 256)
# Codes of 6 bits are stored as 4 bits and 2: c = 4 h + l, which kernels for 4 and for 2 bits can multiply.
SPLIT_BITS, HIGH_BITS, LOW_BITS = 6, 4, 2

CodeFormat = Literal["int", "e4m3", "e2m1"]
Granularity = Literal["group", "channel", "tensor"]
InputScale = Literal["none", "static", "dynamic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationScheme:
    """How one linear (or the embedding) is stored.

    name         the glossary's: w4a16, w6a16, w8a16, w4a8, fp8, fp8-dynamic, nvfp4, f16, bf16, f32
    bits         per code; float schemes have 16 or 32, and neither codes nor scales
    group_size   the *effective* one for this linear (see `effective_group_size`); None where scales span more
    offset       float offsets instead of integer zero points (ggml's Q4_1)
    scale_dtype  f32, f16 or bf16: the type the scales are stored in; codes are chosen for the scale as stored
    code_format  what a code is: a signed integer, or a number of a small float format
    granularity  what shares a scale: a group of a row, a row (an output channel), or the whole matrix
    activations  how the linear's input is quantized: not at all, with a scale found by calibration, or token by token
    """

    name: str
    bits: int
    group_size: int | None = None
    symmetric: bool = True
    offset: bool = False
    scale_dtype: str = "f32"
    code_format: CodeFormat = "int"
    granularity: Granularity = "group"
    activations: InputScale = "none"

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def needs_amax(self) -> bool:
        """Whether the largest magnitude of the whole (fused) matrix must be known before its first row is quantized."""
        has_tensor_scale = self.code_format == "e2m1" or (self.code_format == "int" and self.activations != "none")
        return not self.is_float and (self.granularity == "tensor" or has_tensor_scale)

    def groups(self, in_features: int) -> int:
        """G, the number of scales in a row of `in_features` weights (0 for float schemes)."""
        if self.is_float:
            return 0
        return 1 if self.group_size is None else -(-in_features // self.group_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedTensor:
    """Plain codes and scales of rows of one weight matrix; no consumer's layout.

    codes        int8, float8_e4m3fn or float4_e2m1fn (of ml_dtypes) [N, K], by `scheme.code_format`; one byte each
    scales       float32 [N, G]; of a granularity "tensor", all the same
    zero_points  int8    [N, G]  or None (symmetric: all zero)
    offsets      float32 [N, G]  or None (only with `scheme.offset`)
    tensor_scale nvfp4: the scale of the scales. w4a8: the e4m3 scale of the whole matrix, which the kernel divides
                 the scales by; it is no part of the value. Else None.
    """

    scheme: QuantizationScheme
    codes: NDArray[np.generic]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int8] | None = None
    offsets: NDArray[np.float32] | None = None
    tensor_scale: np.float32 | None = None

    def rows(self, start: int, stop: int) -> "QuantizedTensor":
        """Rows `start` to `stop`, not copied."""
        here = slice(start, stop)
        return replace(
            self,
            codes=self.codes[here],
            scales=self.scales[here],
            zero_points=None if self.zero_points is None else self.zero_points[here],
            offsets=None if self.offsets is None else self.offsets[here],
        )


def effective_group_size(in_features: int, asked: int) -> int:
    """The group size used for rows of `in_features` weights when `asked` was asked for.

    The largest power of two from `asked` down to 16 that divides `in_features`; where none divides, the smallest power
    of two that is at least min(asked, in_features) and at least 16, with a short last group.

    >>> effective_group_size(4096, 128), effective_group_size(576, 128), effective_group_size(172, 32)
    (128, 64, 32)
    """
    if asked not in GROUP_SIZES:
        raise ValueError(f"group size {asked} is not one of {GROUP_SIZES}")
    size = asked
    while size >= 16:
        if in_features % size == 0:
            return size
        size //= 2
    size = 16
    while size < min(asked, in_features):
        size *= 2
    return size


def dequantize(tensor: QuantizedTensor) -> NDArray[np.float32]:
    """float32 [N, K]: the oracle of every backend."""
    n, k = tensor.codes.shape
    groups = tensor.scales.shape[1]
    size = tensor.scheme.group_size or k
    padded = np.zeros((n, groups * size), np.float32)
    padded[:, :k] = tensor.codes
    grouped = padded.reshape(n, groups, size)
    if tensor.zero_points is not None:
        grouped -= tensor.zero_points[:, :, None].astype(np.float32)
    scales = tensor.scales
    if tensor.scheme.code_format == "e2m1" and tensor.tensor_scale is not None:
        scales = scales * tensor.tensor_scale
    grouped *= scales[:, :, None]
    if tensor.offsets is not None:
        grouped += tensor.offsets[:, :, None]
    return np.ascontiguousarray(grouped.reshape(n, -1)[:, :k])
