"""What a block of linears is given, summed over the calibration text: the Gram matrix, and magnitudes.

Cut into column ranges that depend on the matrix alone, each a thread's own, added up batch by batch in the text's
order; of the symmetric matrix only the upper triangle is computed.
"""

from itertools import pairwise

import numpy as np
import torch

from edgeforge.pipeline.layerwise.workers import Workers, products_in_bfloat16

PARTS = 8


class Statistics:
    """Of inputs X [rows, K]: `gram` float32 [K, K] (complete after `finish`), sums of |x| by channel, the largest |x|.

    `drift` float32 [M, K] is D^T X, of what the original would have beside each row, D [rows, M] (M may be 0). The
    rows of first tokens are kept, so that they can be made to count for more.
    """

    def __init__(self, channels: int, drifting: int, device: torch.device, team: Workers) -> None:
        self.drift = torch.zeros(drifting, channels, device=device)
        self.gram = torch.zeros(channels, channels, device=device)
        self.sums = torch.zeros(channels, device=device)
        self.largest = torch.zeros(channels, device=device)
        self.rows = 0
        self._first: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._first_counts = 1.0
        self._team = team
        edges = np.linspace(0, channels, min(PARTS, channels) + 1).astype(int).tolist()
        self._ranges = sorted(pairwise(edges), reverse=True)  # the longest first

    def add(self, x: torch.Tensor, drift: torch.Tensor, length: int) -> None:
        """Inputs [rows, K] and their drift [rows, M], in the order of the text, of sequences of `length` tokens."""

        def part(columns: tuple[int, int]) -> None:
            start, stop = columns
            mine = x[:, start:stop]
            self.gram[:stop, start:stop].addmm_(x[:, :stop].T, mine)
            self.sums[start:stop] += mine.abs().sum(dim=0)
            self.largest[start:stop] = torch.maximum(self.largest[start:stop], mine.abs().amax(dim=0))

        def drifted(columns: tuple[int, int]) -> None:
            start, stop = columns
            self.drift[:, start:stop].addmm_(drift.T, x[:, start:stop])

        self._team.map(part, self._ranges)
        if len(self.drift):
            with products_in_bfloat16():
                self._team.map(drifted, self._ranges)
        self._first.append((x[::length].clone(), drift[::length].clone()))
        self.rows += len(x)

    def finish(self) -> None:
        """Complete the lower triangle, in place."""
        for start, stop in self._ranges:
            self.gram[start:stop, :start] = self.gram[:start, start:stop].T
            # the range's own square was computed whole; one half of it makes both
            square = self.gram[start:stop, start:stop]
            square.copy_(square.triu() + square.triu(1).T)

    @property
    def first(self) -> torch.Tensor:
        """The inputs of every sequence's first token, float32 [B, K]."""
        return torch.cat([x for x, _ in self._first])

    def count_first(self, times: float) -> None:
        """Make first tokens count `times` as much as others in `gram` and `drift`, whatever they counted before."""
        change, self._first_counts = times - self._first_counts, times
        if change:
            for x, drift in self._first:
                self.gram.addmm_(x.T, x, alpha=change)
                self.drift.addmm_(drift.T, x, alpha=change)

    def scale(self, factors: torch.Tensor, *, in_inputs: bool) -> None:
        """As if every input had been multiplied by `factors` [K]; and with `in_inputs` its drift, M = K, too."""
        self.gram.mul_(factors).mul_(factors[:, None])
        self.drift.mul_(factors)
        self.sums *= factors
        self.largest *= factors
        if in_inputs:
            self.drift.mul_(factors[:, None])
        self._first = [(x * factors, drift * factors if in_inputs else drift) for x, drift in self._first]

    @property
    def means(self) -> torch.Tensor:
        """Mean |x| by channel, float32 [K]."""
        return self.sums / max(self.rows, 1)

    def is_finite(self) -> bool:
        """NaN and infinity reach the largest magnitude, and a sum of squares beyond float32 the diagonal."""
        return bool(torch.isfinite(self.largest).all() and torch.isfinite(self.gram.diagonal()).all())
