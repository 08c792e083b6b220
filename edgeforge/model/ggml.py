"""ggml's block formats as arrays: rows of a tensor's bytes to float32, and to the integers they hold.

A row of K weights is K / 32 (K / 256 for the K-quants) blocks, each with its own scale. Dequantization is the gguf
package's; only the unpacking to plain codes is ours (llama.cpp, ggml/src/ggml-common.h, `block_q4_0`, `block_q4_1`,
`block_q8_0`). Shape letters: R rows, K elements of a row, G blocks of a row.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from edgeforge.model.checkpoint import StoredCodes, StoredGrid

Bytes: TypeAlias = NDArray[np.uint8]

READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")

GRIDS = {
    "Q4_0": StoredGrid(bits=4, group_size=32, offset=False),
    "Q4_1": StoredGrid(bits=4, group_size=32, offset=True),
    "Q8_0": StoredGrid(bits=8, group_size=32, offset=False),
}


def row_bytes(dtype: str, elements: int) -> int:
    """How many bytes a row of `elements` weights takes in ggml's type `dtype`."""
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    return elements // block * int(block_bytes)


def to_float(rows: Bytes, dtype: str) -> NDArray[np.float32]:
    """float32 [R, K] of uint8 [R, bytes]; a fresh array, or a view of `rows` for F32."""
    if not len(rows):  # the package's functions reshape by -1, which an empty array does not determine
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
        return np.empty((0, rows.shape[1] // int(block_bytes) * int(block)), np.float32)
    values: NDArray[np.float32] = dequantize(rows, GGMLQuantizationType[dtype])
    return values


def to_codes(rows: Bytes, dtype: str) -> StoredCodes:
    """The integers of uint8 [R, bytes] for a type in GRIDS: `codes * scales + offsets` is what `to_float` returns.

    Equal bit for bit while a block's offset is under 2**13 of its scales, as any fitted block's is; beyond, within
    one rounding of float32.
    """
    return _CODES[dtype](rows)


def _q4_0(rows: Bytes) -> StoredCodes:
    """w = d (q - 8): fp16 d, 16 bytes of nibbles."""
    blocks = rows.reshape(rows.shape[0], -1, 18)
    return StoredCodes(codes=_nibbles(blocks[:, :, 2:]), scales=_half(blocks, 0), offsets=None)


def _q4_1(rows: Bytes) -> StoredCodes:
    """w = d q + m = d (q - 8) + (m + 8 d): fp16 d, fp16 m, 16 bytes of nibbles."""
    blocks = rows.reshape(rows.shape[0], -1, 20)
    d, m = _half(blocks, 0), _half(blocks, 2)
    return StoredCodes(codes=_nibbles(blocks[:, :, 4:]), scales=d, offsets=m + np.float32(8) * d)


def _q8_0(rows: Bytes) -> StoredCodes:
    """w = d q: fp16 d, 32 signed bytes."""
    blocks = rows.reshape(rows.shape[0], -1, 34)
    codes = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8).reshape(rows.shape[0], -1)
    return StoredCodes(codes=codes, scales=_half(blocks, 0), offsets=None)


def _nibbles(packed: Bytes) -> NDArray[np.int8]:
    """int8 [R, K] in -8..7 of uint8 [R, G, 16]: the low nibbles are a block's first 16 elements, the high ones its
    last.
    """
    codes = np.empty((*packed.shape[:2], 2, 16), np.int8)
    np.bitwise_and(packed, 0x0F, out=codes[:, :, 0].view(np.uint8))
    np.right_shift(packed, 4, out=codes[:, :, 1].view(np.uint8))
    codes -= 8
    return codes.reshape(packed.shape[0], -1)


def _half(blocks: Bytes, at: int) -> NDArray[np.float32]:
    """float32 [R, G]: the fp16 at byte `at` of every block."""
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[:, :, 0].astype(np.float32)


_CODES: dict[str, Callable[[Bytes], StoredCodes]] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0}
