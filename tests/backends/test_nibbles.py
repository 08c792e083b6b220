"""4-bit codes lie in their bytes as the formats say, and come out as they went in."""

import numpy as np
import pytest

from edgeforge.backends import nibbles

RANDOM = np.random.default_rng(0)


def test_columns_low_nibble_first() -> None:
    packed = nibbles.pack_columns(np.array([[1, 2, 0xF, 0]], np.uint8))
    assert packed.tolist() == [[0x21, 0x0F]]


def test_rows_low_nibble_first_in_twos_complement() -> None:
    packed = nibbles.pack_rows(np.array([[1, -8, 7], [-1, 0, 2]], np.int8))
    assert packed.tolist() == [[0xF1, 0x08, 0x27]]


def test_words_hold_eight_columns_eight_more_than_they_are() -> None:
    words = nibbles.pack_words(np.array([[-8, -7, -6, -5, -4, -3, -2, -1, 7, 0, 0, 0, 0, 0, 0, 0]], np.int8))
    assert words.dtype == np.int32
    assert words.view(np.uint32).tolist() == [[0x76543210, 0x8888888F]]


@pytest.mark.parametrize("shape", [(2, 8), (6, 16), (64, 40)])
def test_what_is_unpacked_was_packed(shape: tuple[int, int]) -> None:
    signed = RANDOM.integers(-8, 8, shape).astype(np.int8)
    unsigned = RANDOM.integers(0, 16, shape).astype(np.uint8)
    np.testing.assert_array_equal(nibbles.unpack_columns(nibbles.pack_columns(unsigned)), unsigned)
    np.testing.assert_array_equal(nibbles.unpack_rows(nibbles.pack_rows(signed)), signed)
    np.testing.assert_array_equal(nibbles.unpack_words(nibbles.pack_words(signed)), signed)


def test_pieces_need_not_be_contiguous() -> None:
    signed = RANDOM.integers(-8, 8, (8, 32)).astype(np.int8)
    for pack in (nibbles.pack_rows, nibbles.pack_words):
        np.testing.assert_array_equal(pack(signed[:, ::2]), pack(np.ascontiguousarray(signed[:, ::2])))
