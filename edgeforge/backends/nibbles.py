"""4-bit codes to bytes and back: pairs along a row, pairs of rows, and words of eight."""

import numpy as np
from numpy.typing import NDArray


def pack_columns(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, K], the high nibbles zero -> uint8 [N, K / 2]: column 2i in the low nibble, 2i + 1 in the high one."""
    pairs = np.ascontiguousarray(codes).view("<u2")
    return np.asarray((pairs | (pairs >> 4)).astype(np.uint8))


def unpack_columns(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `pack_columns`."""
    codes = np.empty((packed.shape[0], 2 * packed.shape[1]), np.uint8)
    codes[:, 0::2] = packed & 0x0F
    codes[:, 1::2] = packed >> 4
    return codes


def pack_rows(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int8 [N, K] signed -> uint8 [N / 2, K]: row 2i in the low nibble, 2i + 1 in the high one, two's complement."""
    nibbles = codes.view(np.uint8)
    return np.asarray((nibbles[0::2] & 0x0F) | (nibbles[1::2] << 4))


def unpack_rows(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The inverse of `pack_rows`."""
    codes = np.empty((2 * packed.shape[0], packed.shape[1]), np.int8)
    codes[0::2] = (packed << 4).view(np.int8) >> 4  # the shift to the right copies the sign
    codes[1::2] = packed.view(np.int8) >> 4
    return codes


def pack_words(codes: NDArray[np.int8]) -> NDArray[np.int32]:
    """int8 [N, K] signed, 8 divides K -> int32 [N, K / 8]: column k, plus 8, at bits 4 (k % 8) of word k // 8."""
    unsigned = (codes.view(np.uint8) & np.uint8(0x0F)) ^ np.uint8(0x08)
    return pack_columns(unsigned).view("<i4")


def unpack_words(words: NDArray[np.int32]) -> NDArray[np.int8]:
    """The inverse of `pack_words`."""
    unsigned = unpack_columns(np.ascontiguousarray(words).view(np.uint8))
    return unsigned.view(np.int8) - np.int8(8)
