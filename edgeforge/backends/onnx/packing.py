"""Codes to bytes, as com.microsoft.MatMulNBits and GatherBlockQuantized read them.

Both want unsigned codes (signed code + 2**(bits-1)); codes of 4 and 2 bits share a byte, the first in its lowest bits;
a row's last block is filled up with zero weights. Source: onnxruntime/docs/ContribOperators.md.

There is no kernel for 6 bits. c = 4 h + l with h of 4 bits and l of 2, and so with zero points, so that
(c - z) s = (h - z_h) 4 s + (l - z_l) s: the sum of two products that kernels exist for (`split`).
"""

import numpy as np
from numpy.typing import NDArray

from edgeforge.quantization.scheme import HIGH_BITS, LOW_BITS


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Signed codes int8 [N, M] -> uint8 [N, ceil(M * bits / 8)]; what is short of a byte is filled with code 0."""
    if bits == 8:
        return codes.view(np.uint8) ^ np.uint8(0x80)
    if bits == LOW_BITS:
        return _pack_quarters(codes)
    if bits != HIGH_BITS:
        raise ValueError(f"{bits}-bit codes have no packing here")
    unsigned = (codes.view(np.uint8) & np.uint8(0x0F)) ^ np.uint8(0x08)
    if unsigned.shape[1] % 2:
        unsigned = np.pad(unsigned, ((0, 0), (0, 1)), constant_values=8)
    pairs = np.ascontiguousarray(unsigned).view("<u2")
    return np.asarray((pairs | (pairs >> 4)).astype(np.uint8))


def _pack_quarters(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    unsigned = (codes.view(np.uint8) & np.uint8(0x03)) ^ np.uint8(0x02)
    if short := -unsigned.shape[1] % 4:
        unsigned = np.pad(unsigned, ((0, 0), (0, short)), constant_values=2)
    quads = np.ascontiguousarray(unsigned).view("<u4")
    return np.asarray((quads | (quads >> 6) | (quads >> 12) | (quads >> 18)).astype(np.uint8))


def split(codes: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """6-bit codes c, int8 in -32..31, as (h, l): c = 4 h + l + 2, h int8 in -8..7 and l in -2..1.

    l is what `pack` takes, signed; unsigned it is c's two lowest bits. Zero points split in the same way.
    """
    return codes >> LOW_BITS, (codes & np.int8(3)) - np.int8(2)


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int8]:
    """The inverse of `pack`: int8 [N, count]."""
    if bits == 8:
        return (packed ^ np.uint8(0x80)).view(np.int8)[:, :count]
    if bits == LOW_BITS:
        quarters = np.stack([packed >> shift & 0x03 for shift in (0, 2, 4, 6)], axis=2).astype(np.int8)
        return (quarters.reshape(len(packed), -1) - np.int8(2))[:, :count]
    nibbles = np.empty((packed.shape[0], packed.shape[1] * 2), np.int8)
    nibbles[:, 0::2] = packed & 0x0F
    nibbles[:, 1::2] = packed >> 4
    return (nibbles - np.int8(8))[:, :count]


def pad_to_blocks(codes: NDArray[np.int8], block_size: int) -> NDArray[np.int8]:
    """int8 [N, K] -> [N, ceil(K / block_size) * block_size], filled with code 0 (it meets zero activations only)."""
    short = -codes.shape[1] % block_size
    return np.pad(codes, ((0, 0), (0, short))) if short else codes
