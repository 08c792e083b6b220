"""Hidden states in a file: what one layer leaves and the next one reads, a few sequences at a time.

Read and written by position rather than mapped: mapped pages count as the process's own memory, and 128 sequences of
2,048 tokens of an 8B model are 4.3 GB.
"""

from pathlib import Path

import numpy as np
import torch


class HiddenStates:
    """float32 [B, T, D] in a file. Thread-safe for sequences of their own."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path = path
        self.shape = shape
        self._bytes = 4 * shape[1] * shape[2]

    def create(self) -> None:
        """An empty file in the place of any other."""
        with self.path.open("wb") as file:
            file.truncate(self._bytes * self.shape[0])

    def read(self, sequence: int) -> torch.Tensor:
        """[T, D] of one sequence."""
        with self.path.open("rb") as file:
            file.seek(self._bytes * sequence)
            values = np.fromfile(file, np.float32, self._bytes // 4)
        return torch.from_numpy(values.reshape(self.shape[1:]))

    def write(self, sequence: int, x: torch.Tensor) -> None:
        """Put [T, D] in the place of one sequence."""
        with self.path.open("r+b") as file:
            file.seek(self._bytes * sequence)
            file.write(x.contiguous().cpu().numpy().data)
