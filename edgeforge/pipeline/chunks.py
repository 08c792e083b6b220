"""How large the pieces of a walk are and how many are under way at once, under a budget of memory.

A piece is quantized by itself, so the bytes of the bundle are the same at every size. The budget is for the walk, which
reads, quantizes and writes: passes that read text (calibration, validation) run the model, and need more.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from edgeforge.errors import OutOfResources
from edgeforge.pipeline import walk
from edgeforge.planning import BuildPlan

BASE_BYTES = 300_000_000
"""The interpreter and its libraries, the tokenizer, the graph: 165 MB at the end of a build of the demo, 248 MB with
Llama 3's 128,256 tokens."""
READ_BYTES, PLAN_BYTES = 20, 12
"""Of a weight that a worker holds, at most: float32 rows, divided, and what quantizing makes meanwhile (tracemalloc: 5
to 12 bytes over integer schemes and algorithms); and for every bundle being built its codes, packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """Workers, and weights in a piece (at least eight rows of a matrix)."""

    threads: int
    elements: int


def share(memory_bytes: int | None, plans: Sequence[BuildPlan], threads: int) -> Chunks:
    """What a budget allows, `threads` workers at most; None stands for half of the machine's memory.

    OutOfResources where one worker with eight rows of the widest matrix is too much.
    """
    budget = machine_bytes() // 2 if memory_bytes is None else memory_bytes
    weight_bytes = READ_BYTES + PLAN_BYTES * len(plans)
    widest = max(math.prod(shape[1:]) for _, shape in plans[0].architecture.tensors())
    least = walk.ROWS_TOGETHER * widest
    at_once = (budget - BASE_BYTES) // weight_bytes
    if at_once < least:
        raise OutOfResources(
            f"this model takes {(BASE_BYTES + least * weight_bytes) / 1e6:,.0f} MB of memory at least, and the build "
            f"has {budget / 1e6:,.0f} MB",
            hint="give it more with --memory" if memory_bytes is not None else "use a machine with more memory",
        )
    threads = min(threads, at_once // least)
    elements = 1 << ((at_once // threads).bit_length() - 1)  # few sizes: pieces of another are not gone on with
    return Chunks(threads=threads, elements=min(walk.PIECE_ELEMENTS, elements))


def machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
