"""The one door from float32 rows to codes and scales, for what needs no data: the scheme says what its codes are."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeforge.quantization import rtn, search
from edgeforge.quantization.fp8 import quantize_fp8
from edgeforge.quantization.nvfp4 import quantize_nvfp4
from edgeforge.quantization.scheme import CodeFormat, QuantizationScheme, QuantizedTensor
from edgeforge.quantization.w4a8 import quantize_w4a8

Rows = NDArray[np.float32]
Algorithm = Literal["rtn", "search"]
"""Those that need no more than the rows."""

OF_ROWS: Mapping[CodeFormat, Callable[[Rows, QuantizationScheme], QuantizedTensor]] = {
    "int": rtn.quantize,
    "e4m3": quantize_fp8,
}
OF_ROWS_OF_A_MATRIX: Mapping[CodeFormat, Callable[[Rows, QuantizationScheme, float], QuantizedTensor]] = {
    "int": quantize_w4a8,
    "e4m3": quantize_fp8,
    "e2m1": quantize_nvfp4,
}


def quantize(
    weights: Rows, scheme: QuantizationScheme, *, amax: float | None = None, algorithm: Algorithm = "rtn"
) -> QuantizedTensor:
    """Round float32 [n, K], some rows of a matrix, to `scheme`. Pieces of rows get the codes of the whole.

    `amax` is max |w| over the whole fused matrix (q, k and v are one, gate and up are one), needed where
    `scheme.needs_amax`. `search` finds better scales for integer groups (search.py) and is `rtn` for all else. Raises
    ValueError for NaN, infinity, a missing amax, a scale its type cannot hold, rows that do not divide into the
    scheme's groups where it has no short ones, and a scheme without codes.
    """
    if scheme.is_float:
        raise ValueError(f"{scheme.name} has no codes to round to")
    if not scheme.needs_amax:
        if algorithm == "search" and scheme.code_format == "int":
            return search.quantize(weights, scheme)
        return OF_ROWS[scheme.code_format](weights, scheme)
    if amax is None:
        raise ValueError(f"{scheme.name} needs the largest magnitude of the whole matrix")
    return OF_ROWS_OF_A_MATRIX[scheme.code_format](weights, scheme, amax)
