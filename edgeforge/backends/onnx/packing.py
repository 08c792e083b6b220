"""Codes to bytes, as com.microsoft.MatMulNBits and GatherBlockQuantized read them.

Both want unsigned codes (signed code + 2**(bits-1)); two 4-bit codes share a byte, the even one in the low nibble; a
row's last block is filled up with zero weights. Source: onnxruntime/docs/ContribOperators.md.
"""

import numpy as np
from numpy.typing import NDArray


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Signed codes int8 [N, M] -> uint8 [N, ceil(M * bits / 8)]; an odd 4-bit tail is filled with code 0."""
    if bits == 8:
        return codes.view(np.uint8) ^ np.uint8(0x80)
    if bits != 4:
        raise ValueError(f"{bits}-bit codes have no packing here")
    unsigned = (codes.view(np.uint8) & np.uint8(0x0F)) ^ np.uint8(0x08)
    if unsigned.shape[1] % 2:
        unsigned = np.pad(unsigned, ((0, 0), (0, 1)), constant_values=8)
    pairs = np.ascontiguousarray(unsigned).view("<u2")
    return np.asarray((pairs | (pairs >> 4)).astype(np.uint8))


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int8]:
    """The inverse of `pack`: int8 [N, count]."""
    if bits == 8:
        return (packed ^ np.uint8(0x80)).view(np.int8)[:, :count]
    nibbles = np.empty((packed.shape[0], packed.shape[1] * 2), np.int8)
    nibbles[:, 0::2] = packed & 0x0F
    nibbles[:, 1::2] = packed >> 4
    return (nibbles - np.int8(8))[:, :count]


def pad_to_blocks(codes: NDArray[np.int8], block_size: int) -> NDArray[np.int8]:
    """int8 [N, K] -> [N, ceil(K / block_size) * block_size], filled with code 0 (it meets zero activations only)."""
    short = -codes.shape[1] % block_size
    return np.pad(codes, ((0, 0), (0, short))) if short else codes
