"""Rotary position embedding (arXiv 2104.09864): inverse frequencies and the cos/sin tables, those of transformers.

At position 100,000 one unit in the last place of a float32 frequency is 0.006 radians, and the published models were
trained with float32 frequencies and float32 angles. So each step that transformers rounds to float32 is rounded here
too (modeling_rope_utils.py and modeling_llama.py of transformers 4.57); powers and cosines are taken in float64 first,
so that any machine gives the same tables.
"""

import math

import numpy as np
from numpy.typing import NDArray

from edgeforge.model.rotary_config import Rotary

BLOCK_POSITIONS = 8192


def inverse_frequencies(rotary: Rotary, head_dim: int) -> NDArray[np.float64]:
    """float64 [head_dim // 2], radians per position, each of them a float32 figure.

    `dynamic` scaling starts beyond max_position_embeddings; up to there, where a plan stops, it is the default.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    power = np.power(rotary.theta, exponent.astype(np.float64)).astype(np.float32)
    inverse = np.float32(1.0) / power
    if rotary.kind == "linear":
        inverse = inverse / np.float32(rotary.factor)
    if rotary.kind == "llama3":
        inverse = _llama3(rotary, inverse)
    return inverse.astype(np.float64)


def _llama3(rotary: Rotary, inverse: NDArray[np.float32]) -> NDArray[np.float32]:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated (Llama 3.1)."""
    low, high = rotary.low_freq_factor, rotary.high_freq_factor
    original = rotary.original_max_position_embeddings
    if low is None or high is None or original is None:
        raise ValueError("a llama3 rotary needs low_freq_factor, high_freq_factor, original_max_position_embeddings")
    wavelength = np.float32(2 * math.pi) / inverse
    stretched = inverse / np.float32(rotary.factor)
    smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    # In transformers' order of operations, since every one of them rounds.
    between = (np.float32(1) - smooth) * inverse / np.float32(rotary.factor) + smooth * inverse
    kept = np.where(wavelength > np.float32(original / low), stretched, inverse)
    medium = (wavelength >= np.float32(original / high)) & (wavelength <= np.float32(original / low))
    return np.where(medium, between, kept)


def rotary_tables(rotary: Rotary, head_dim: int, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(cos, sin), float32 [positions, head_dim // 2] each: entry [t, i] belongs to channels i and i + head_dim // 2."""
    inverse = inverse_frequencies(rotary, head_dim).astype(np.float32)
    cos = np.empty((positions, head_dim // 2), np.float32)
    sin = np.empty_like(cos)
    for start in range(0, positions, BLOCK_POSITIONS):
        stop = min(start + BLOCK_POSITIONS, positions)
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * inverse
        exact = angles.astype(np.float64)
        cos[start:stop] = np.cos(exact)
        sin[start:stop] = np.sin(exact)
    return cos, sin
