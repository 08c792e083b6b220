"""One walk over the checkpoint, in file order: each piece is read, quantized and put in its place by one worker."""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends import Rows
from edgeforge.errors import UnusableInput
from edgeforge.model.checkpoint import Checkpoint, LazyTensor, StoredGrid
from edgeforge.quantization.rtn import quantize
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

PIECE_ELEMENTS = 1 << 20
"""Weights that a worker holds at once, 4 MB as float32. With fewer, workers mostly wait for the interpreter's lock
between numpy's calls: quantizing 1.9 billion took one thread 4.6 s, two threads 4.3 s at 1 << 18, and 2.9 s here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Rows [start, stop) of one checkpoint tensor."""

    tensor: LazyTensor
    scheme: QuantizationScheme | None
    start: int
    stop: int


def available_cores() -> int:
    """How many workers a walk uses unless told."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def walk(
    checkpoint: Checkpoint,
    schemes: Mapping[str, QuantizationScheme],
    put: Callable[[str, int, Rows], None],
    *,
    threads: int,
    progress: Callable[[int, int], None],
) -> None:
    """Read, quantize and put every piece of the checkpoint, on `threads` workers. The first failure stops them all.

    Tensors without a scheme stay float. `progress(done, total)` counts weights, from the workers.
    """
    tensors = [checkpoint.tensor(name) for name in checkpoint.names]
    total, done = sum(math.prod(tensor.shape) for tensor in tensors), 0
    pieces = (piece for tensor in tensors for piece in _pieces(tensor, schemes.get(tensor.name)))
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal done
        while not stop.is_set():
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            _place(piece, put)
            with lock:
                done += (piece.stop - piece.start) * math.prod(piece.tensor.shape[1:])
                told = done
            progress(told, total)

    with ThreadPoolExecutor(threads, thread_name_prefix="quantize") as pool:
        workers = [pool.submit(work) for _ in range(threads)]
        try:
            for worker in as_completed(workers):
                worker.result()
        finally:
            stop.set()


def _pieces(tensor: LazyTensor, scheme: QuantizationScheme | None) -> Iterator[_Piece]:
    rows = tensor.shape[0]
    step = max(1, PIECE_ELEMENTS // math.prod(tensor.shape[1:]))
    for start in range(0, rows, step):
        yield _Piece(tensor=tensor, scheme=scheme, start=start, stop=min(start + step, rows))


def _place(piece: _Piece, put: Callable[[str, int, Rows], None]) -> None:
    try:
        put(piece.tensor.name, piece.start, _convert(piece))
    except FloatingPointError as error:
        raise UnusableInput(
            f"{piece.tensor.name}, rows {piece.start} to {piece.stop - 1}: {error}",
            hint="the checkpoint is damaged, or its training diverged; fetch it again or take another",
        ) from error


def _convert(piece: _Piece) -> Rows:
    """The piece as its scheme stores it: the checkpoint's own codes where they are the scheme's, else rounded.

    FloatingPointError for what no scheme holds.
    """
    tensor, scheme = piece.tensor, piece.scheme
    if scheme is None or scheme.is_float:
        return _finite(tensor.rows(piece.start, piece.stop))
    if _lies_on(tensor.grid, scheme):
        stored = tensor.stored_codes(piece.start, piece.stop)
        assert stored is not None
        return QuantizedTensor(
            scheme=scheme, codes=stored.codes, scales=stored.scales, offsets=_rounded(stored.offsets, scheme)
        )
    try:
        return quantize(tensor.rows(piece.start, piece.stop), scheme)
    except ValueError as error:
        raise FloatingPointError(str(error)) from None


def _lies_on(grid: StoredGrid | None, scheme: QuantizationScheme) -> bool:
    """Whether codes on the checkpoint's grid are codes of the scheme."""
    if grid is None or (grid.bits, grid.group_size, grid.offset) != (scheme.bits, scheme.group_size, scheme.offset):
        return False
    return scheme.offset or scheme.symmetric


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise FloatingPointError("the weights contain NaN or infinity")
    return values


def _rounded(offsets: NDArray[np.float32] | None, scheme: QuantizationScheme) -> NDArray[np.float32] | None:
    """Offsets as their slot holds them. ggml's scales are float16 and exact anywhere; its offsets, centred, are not."""
    if offsets is None or scheme.scale_dtype == "f32":
        return offsets
    return offsets.astype(np.float16).astype(np.float32)
