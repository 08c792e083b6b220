"""One walk over the checkpoint, in file order: each piece is read once, quantized once per scheme, and put in its place
in every bundle being built.

Schemes with a scale for a whole matrix need its largest magnitude first. Then all rows of the matrix (and of those
fused with it, which share the scale) are read twice, the second time from the operating system's cache.
"""

import math
import os
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends import Rows
from edgeforge.errors import UnusableInput
from edgeforge.model.checkpoint import Checkpoint, LazyTensor
from edgeforge.model.magnitude import largest
from edgeforge.pipeline.journal import Piece
from edgeforge.planning import fused_blocks
from edgeforge.planning import lies_on as lies_on
from edgeforge.quantization.quantize import Algorithm, quantize
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

PIECE_ELEMENTS = 1 << 20
"""Weights that a worker holds at once, 4 MB as float32. With fewer, workers mostly wait for the interpreter's lock
between numpy's calls: quantizing 1.9 billion took one thread 4.6 s, two threads 4.3 s at 1 << 18, and 2.9 s here."""
ROWS_TOGETHER = 8
"""A piece starts at a multiple of this: some formats pack rows of one column into a byte, or into a word of 32 bits."""

LOOK_AGAIN_S = 0.05
AHEAD_ELEMENTS = 200_000_000
"""Weights that the system is told of before they are read, a few hundred megabytes: the disk works while the cores do.
(An 8B checkpoint to FP8, from a disk of 1.3 GB/s: 22.5 s of walking instead of 26.8.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """One bundle being built. `pre_quant_scales`: what the columns of a weight are divided by first, by its name.
    `algorithm`: how codes are chosen (`quantize`). `finished`: the pieces that it has already.
    """

    schemes: Mapping[str, QuantizationScheme]
    put: Callable[[str, int, Rows], object]
    pre_quant_scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    algorithm: Algorithm = "rtn"
    finished: Container[Piece] = frozenset()


class _Magnitude:
    """The largest |w| of a block of fused matrices, found piece by piece; `wait` blocks until all are in."""

    def __init__(self, pieces: int) -> None:
        self._missing = pieces
        self._largest = np.float32(0)
        self._lock = threading.Lock()
        self._whole = threading.Event()

    def add(self, value: np.float32) -> None:
        with self._lock:
            self._largest = max(self._largest, value)
            self._missing -= 1
            if not self._missing:
                self._whole.set()

    def wait(self, stop: threading.Event) -> float | None:
        """None where the walk was stopped meanwhile."""
        while not self._whole.wait(LOOK_AGAIN_S):
            if stop.is_set():
                return None
        return float(self._largest)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Rows [start, stop) of one checkpoint tensor, to be measured, or to be quantized for every consumer.

    `magnitudes` by the identity of the pre-quant scales that the weights are divided by (0: none).
    """

    tensor: LazyTensor
    start: int
    stop: int
    measures: bool
    magnitudes: Mapping[int, _Magnitude]

    @property
    def weights(self) -> int:
        return 0 if self.measures else _weights(self.tensor, self.start, self.stop)


def available_cores() -> int:
    """How many workers a walk uses unless told."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def walk(
    checkpoint: Checkpoint,
    consumers: Sequence[Consumer],
    *,
    threads: int,
    progress: Callable[[int, int], None],
    skip: Sequence[str] = (),
    elements: int | None = None,
) -> None:
    """Read, quantize and put every piece of the checkpoint, on `threads` workers. The first failure stops them all.

    `elements`: weights in a piece, PIECE_ELEMENTS unless told. Tensors without a scheme stay float; those in `skip` are
    left out. `progress(done, total)` counts weights, from the workers; those that all consumers have count as done.
    When this returns or raises, nothing is being put any more.
    """
    left_out = frozenset(skip)
    names = [name for name in checkpoint.names if name not in left_out]
    tensors = [checkpoint.tensor(name) for name in names]
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    missing = [(tensor, span) for tensor in tensors for span in _missing(tensor, consumers, elements)]
    done = before = total - sum(_weights(tensor, *span) for tensor, span in missing)
    pieces = _pieces(checkpoint, names, consumers, elements)
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal done
        while not stop.is_set():
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            _handle(piece, consumers, stop)
            with lock:
                done += piece.weights
                told = done
            progress(told, total)

    with ThreadPoolExecutor(threads + 1, thread_name_prefix="quantize") as pool:
        ahead = pool.submit(_announce, missing, lambda: done - before, stop)
        workers = [ahead, *(pool.submit(work) for _ in range(threads))]
        try:
            for worker in as_completed(workers):
                worker.result()
        finally:
            stop.set()
            _wait_for(workers)


def _wait_for(workers: Sequence[Future[None]]) -> None:
    """Until each has put down its piece, a moment, and whoever presses Ctrl-C again waits it too: files close next."""
    while True:
        try:
            wait(workers)
        except KeyboardInterrupt:
            continue
        return


def _announce(
    missing: Iterable[tuple[LazyTensor, tuple[int, int]]], done: Callable[[], int], stop: threading.Event
) -> None:
    """Tell the system what will be read next, AHEAD_ELEMENTS before the workers come to it."""
    told = 0
    for tensor, span in missing:
        while told - done() > AHEAD_ELEMENTS and not stop.wait(LOOK_AGAIN_S):
            pass
        if stop.is_set():
            return
        tensor.announce(*span)
        told += _weights(tensor, *span)


def _missing(tensor: LazyTensor, consumers: Sequence[Consumer], elements: int | None) -> Iterator[tuple[int, int]]:
    """(start, stop) of the pieces that some consumer does not have."""
    for start, stop in steps(tensor.shape, elements):
        piece = Piece(tensor.name, start, stop)
        if any(piece not in consumer.finished for consumer in consumers):
            yield start, stop


def _weights(tensor: LazyTensor, start: int, stop: int) -> int:
    return (stop - start) * math.prod(tensor.shape[1:])


def _pieces(
    checkpoint: Checkpoint, wanted: Sequence[str], consumers: Sequence[Consumer], elements: int | None
) -> Iterator[_Piece]:
    """What is missing of the wanted tensors, in file order; before the first of a block whose magnitude is needed, all
    of it is measured.
    """
    blocks: dict[str, Sequence[str]] = {}
    if any(scheme.needs_amax for consumer in consumers for scheme in consumer.schemes.values()):
        for block in fused_blocks(checkpoint.architecture):
            names = [linear.name for linear in block]
            blocks |= dict.fromkeys(names, names)
    measured: dict[str, Mapping[int, _Magnitude]] = {}
    for name in wanted:
        spans = list(_missing(checkpoint.tensor(name), consumers, elements))
        if spans and name in blocks and name not in measured:
            members = [checkpoint.tensor(member) for member in blocks[name]]
            count = sum(1 for tensor in members for _ in steps(tensor.shape, elements))
            found = {key: _Magnitude(count) for key in _keys(name, consumers)}
            measured |= dict.fromkeys(blocks[name], found)
            for tensor in members if found else ():
                yield from _cut(tensor, steps(tensor.shape, elements), found, measures=True)
        yield from _cut(checkpoint.tensor(name), spans, measured.get(name, {}), measures=False)


def _keys(name: str, consumers: Sequence[Consumer]) -> frozenset[int]:
    """Of the magnitudes that the schemes of the tensor's block need."""
    return frozenset(
        _key(consumer, name)
        for consumer in consumers
        if (scheme := consumer.schemes.get(name)) is not None and scheme.needs_amax
    )


def _key(consumer: Consumer, name: str) -> int:
    return id(consumer.pre_quant_scales) if name in consumer.pre_quant_scales else 0


def steps(shape: tuple[int, ...], elements: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, stop) of the pieces that a tensor of this shape comes in."""
    step = _step(shape, elements)
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def is_step(shape: tuple[int, ...], start: int, stop: int, elements: int | None = None) -> bool:
    """Whether a tensor of this shape comes in pieces of which (start, stop) is one."""
    step = _step(shape, elements)
    return start % step == 0 and 0 <= start < shape[0] and stop == min(start + step, shape[0])


def _step(shape: tuple[int, ...], elements: int | None) -> int:
    return max(1, (elements or PIECE_ELEMENTS) // math.prod(shape[1:]) // ROWS_TOGETHER) * ROWS_TOGETHER


def _cut(
    tensor: LazyTensor, spans: Iterable[tuple[int, int]], magnitudes: Mapping[int, _Magnitude], *, measures: bool
) -> Iterator[_Piece]:
    for start, stop in spans:
        yield _Piece(tensor=tensor, start=start, stop=stop, measures=measures, magnitudes=magnitudes)


def _handle(piece: _Piece, consumers: Sequence[Consumer], stop: threading.Event) -> None:
    try:
        if piece.measures:
            _measure(piece, consumers)
        else:
            _place(piece, consumers, stop)
    except FloatingPointError as error:
        raise UnusableInput(
            f"{piece.tensor.name}, rows {piece.start} to {piece.stop - 1}: {error}",
            hint="the checkpoint is damaged, or its training diverged; fetch it again or take another",
        ) from error


def _measure(piece: _Piece, consumers: Sequence[Consumer]) -> None:
    tensor = piece.tensor
    scales = {_key(consumer, tensor.name): consumer.pre_quant_scales.get(tensor.name) for consumer in consumers}
    for key, magnitude in piece.magnitudes.items():
        divisor = scales.get(key)
        if divisor is None:
            found = tensor.magnitude(piece.start, piece.stop)
        else:
            found = largest(tensor.rows(piece.start, piece.stop) / divisor)
        if not np.isfinite(found):
            raise FloatingPointError("the weights contain NaN or infinity")
        magnitude.add(found)


def _place(piece: _Piece, consumers: Sequence[Consumer], stop: threading.Event) -> None:
    """Give every consumer the piece as its scheme stores it; consumers that agree share the work."""
    name = piece.tensor.name
    rows: NDArray[np.float32] | None = None
    made: dict[tuple[QuantizationScheme | None, int, Algorithm], Rows] = {}
    for consumer in consumers:
        if Piece(name, piece.start, piece.stop) in consumer.finished:
            continue
        scheme, key = consumer.schemes.get(name), _key(consumer, name)
        kind = (scheme, key, consumer.algorithm)
        if kind not in made:
            if scheme is not None and key == 0 and lies_on(piece.tensor.grid, scheme):
                made[kind] = _stored(piece, scheme)
            else:
                rows = piece.tensor.rows(piece.start, piece.stop) if rows is None else rows
                amax = piece.magnitudes[key].wait(stop) if scheme is not None and scheme.needs_amax else None
                if stop.is_set():
                    return
                divided = rows if key == 0 else rows / consumer.pre_quant_scales[name]
                made[kind] = _convert(divided, scheme, amax, consumer.algorithm)
        consumer.put(name, piece.start, made[kind])


def _convert(
    rows: NDArray[np.float32], scheme: QuantizationScheme | None, amax: float | None, algorithm: Algorithm
) -> Rows:
    """The rows as their scheme stores them. FloatingPointError for what no scheme holds."""
    if scheme is None or scheme.is_float:
        return _finite(rows)
    try:
        return quantize(rows, scheme, amax=amax, algorithm=algorithm)
    except ValueError as error:
        raise FloatingPointError(str(error)) from None


def _stored(piece: _Piece, scheme: QuantizationScheme) -> QuantizedTensor:
    """The checkpoint's own codes, which are the scheme's."""
    stored = piece.tensor.stored_codes(piece.start, piece.stop)
    assert stored is not None
    return QuantizedTensor(
        scheme=scheme, codes=stored.codes, scales=stored.scales, offsets=_rounded(stored.offsets, scheme)
    )


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise FloatingPointError("the weights contain NaN or infinity")
    return values


def _rounded(offsets: NDArray[np.float32] | None, scheme: QuantizationScheme) -> NDArray[np.float32] | None:
    """Offsets as their slot holds them. ggml's scales are float16 and exact anywhere; its offsets, centred, are not."""
    if offsets is None or scheme.scale_dtype == "f32":
        return offsets
    return offsets.astype(np.float16).astype(np.float32)
