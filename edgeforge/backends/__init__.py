"""One module per consumer. Each turns a plan and neutral tensors into the files that its consumer loads.

A backend is a module (or package) that satisfies `Backend`; nothing registers itself. The pipeline walks the checkpoint
once and hands every piece of every tensor to the sink, from several threads, in any order.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeforge.model.checkpoint import GenerationDefaults
from edgeforge.planning import BuildPlan
from edgeforge.quantization.scheme import QuantizedTensor

Rows = QuantizedTensor | NDArray[np.float32]


class WeightSink(Protocol):
    """Takes rows of checkpoint tensors, by their Hugging Face names, and puts their bytes in place. Thread-safe."""

    def put(self, name: str, start: int, rows: Rows) -> None:
        """Rows `start` onwards of tensor `name`: a QuantizedTensor where the plan quantizes it, else float32.

        FloatingPointError where a value is beyond the type it is stored in.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What the consumer needs to load the files: PyPI packages with version ranges, and a device provider."""

    packages: Mapping[str, str]
    provider: str


class Backend(Protocol):
    """What the pipeline asks of a backend module."""

    def requirements(self, plan: BuildPlan) -> Requirements: ...

    def sink(self, plan: BuildPlan, directory: Path) -> AbstractContextManager[WeightSink]:
        """Opens the weight files, at their final size, in `directory`."""
        ...

    def finish(self, plan: BuildPlan, generation: GenerationDefaults, directory: Path) -> None:
        """Writes everything that is not weights."""
        ...
