"""A randomized Hadamard matrix of any size, multiplied without being formed (QuaRot, arXiv 2404.00456, section 3).

    Q = diag(s) (C ⊗ H),   n = m * 2^k with odd m

H is Walsh's 2^k x 2^k matrix, C the orthonormal Hartley matrix of order m (Bracewell 1983; 1 for a power of two), and s
are random signs. Every entry is at most sqrt(2 / n), so that an outlier is spread over all channels. Products are sums
in a fixed order, element by element: the same bits on any machine, which a library's matrix product does not promise.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PANEL_ELEMENTS = 1 << 17  # turned together: half a megabyte, and as much again for the result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Orthogonal:
    """Q [n, n]. `factors` float32 [n]: the signs times H's scale; `odd` float32 [m, m]: C."""

    factors: Floats
    odd: Floats

    @property
    def size(self) -> int:
        return len(self.factors)

    def turn_rows(self, x: Floats) -> None:
        """x becomes x Q, in place; float32 [N, n]."""
        step = max(1, PANEL_ELEMENTS // self.size)
        for start in range(0, len(x), step):
            rows = x[start : start + step]
            rows[...] = self._turned(np.ascontiguousarray(rows.T)).T

    def turn_columns(self, w: Floats) -> None:
        """w becomes Q^T w, in place; float32 [n, K]."""
        step = max(16, PANEL_ELEMENTS // self.size)
        for start in range(0, w.shape[1], step):
            columns = w[:, start : start + step]
            columns[...] = self._turned(np.ascontiguousarray(columns))

    def _turned(self, panel: Floats) -> Floats:
        """Q^T panel; float32 [n, K], overwritten."""
        order = len(self.odd)
        with np.errstate(invalid="ignore", over="ignore"):  # whoever reads the result looks for NaN and infinity
            panel *= self.factors[:, None]
            mixed = _mixed(panel.reshape(order, -1), self.odd) if order > 1 else panel
            return _walsh(mixed.reshape(order, -1), self.size // order).reshape(panel.shape)


def orthogonal(size: int, seed: int) -> Orthogonal:
    """Q of a given size, drawn by `seed`; the same on any machine, whatever the versions of its libraries."""
    power = size & -size
    drawn = hashlib.shake_256(f"edgeforge rotation {size} {seed}".encode()).digest(-(-size // 8))
    signs = 1 - 2 * np.unpackbits(np.frombuffer(drawn, np.uint8), count=size).astype(np.float32)
    return Orthogonal(factors=signs * np.float32(power**-0.5), odd=_hartley(size // power))


def _hartley(order: int) -> Floats:
    """(cos + sin)(2 pi i j / m) / sqrt(m): symmetric and orthogonal, float32 [m, m]."""
    angles = [2 * math.pi * step / order for step in range(order)]
    values = np.array([(math.cos(angle) + math.sin(angle)) * order**-0.5 for angle in angles], np.float32)
    steps = np.arange(order)
    return values[np.outer(steps, steps) % order]


def _mixed(x: Floats, odd: Floats) -> Floats:
    """C x of [m, L], summed in order."""
    total: Floats = odd[0, :, None] * x[0]
    for row, coefficients in zip(x[1:], odd[1:], strict=True):
        total += coefficients[:, None] * row
    return total


def _walsh(x: Floats, length: int) -> Floats:
    """H, unscaled, along each of [m, 2^k * K]'s 2^k rows of K; overwrites `x` and returns it or its twin."""
    twin = np.empty_like(x)
    apart = x.shape[1] // length
    for _ in range(length.bit_length() - 1):
        pairs, sums = (values.reshape(-1, 2, apart) for values in (x, twin))
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        x, twin, apart = twin, x, 2 * apart
    return x
