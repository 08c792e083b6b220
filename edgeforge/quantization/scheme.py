"""How a weight matrix is stored: the scheme, the neutral tensor that holds it, and its inverse.

Shape letters: N out_features, K in_features, G groups per row (= ceil(K / group_size)).

A quantized weight is `w[n, k] = (codes[n, k] - zero_points[n, g]) * scales[n, g]` with g = k // group_size, codes and
zero points *signed* (int4: -8..7, int8: -128..127); packers add 2**(bits-1) where their consumer wants unsigned bytes.
ggml's Q4_1 stores `scale * code + offset` with a fractional zero point; such tensors carry `offsets` instead of
zero points, so that nothing is rounded twice: `w = codes * scales + offsets`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationScheme:
    """How one linear (or the embedding) is stored.

    `name` is the glossary's: w4a16, w8a16, f16, f32. Float schemes have bits 16 or 32 and no groups.
    `group_size` is the *effective* one for this linear (see `effective_group_size`).
    `offset` marks a scheme with float offsets instead of integer zero points (ggml's Q4_1).
    `scale_dtype` (f32, f16) is the type the scales are stored in: codes are chosen for the scale as stored.
    """

    name: str
    bits: int
    group_size: int | None = None
    symmetric: bool = True
    offset: bool = False
    scale_dtype: str = "f32"

    @property
    def is_float(self) -> bool:
        return self.group_size is None

    def groups(self, in_features: int) -> int:
        """G, the number of groups in a row of `in_features` weights (0 for float schemes)."""
        return 0 if self.group_size is None else -(-in_features // self.group_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedTensor:
    """Plain codes and scales of rows of one weight matrix; no consumer's layout.

    codes        int8    [N, K]  one code per element, unpacked, signed
    scales       float32 [N, G]
    zero_points  int8    [N, G]  or None (symmetric: all zero)
    offsets      float32 [N, G]  or None (only with `scheme.offset`)
    """

    scheme: QuantizationScheme
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int8] | None = None
    offsets: NDArray[np.float32] | None = None


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
    assert tensor.scheme.group_size is not None
    n, k = tensor.codes.shape
    groups = tensor.scales.shape[1]
    size = tensor.scheme.group_size
    padded = np.zeros((n, groups * size), np.float32)
    padded[:, :k] = tensor.codes
    grouped = padded.reshape(n, groups, size)
    if tensor.zero_points is not None:
        grouped -= tensor.zero_points[:, :, None].astype(np.float32)
    grouped *= tensor.scales[:, :, None]
    if tensor.offsets is not None:
        grouped += tensor.offsets[:, :, None]
    return np.ascontiguousarray(grouped.reshape(n, -1)[:, :k])
