"""The weights of every bundle being built, in one walk over the checkpoint; what earlier walks put in place is kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgeforge import backends
from edgeforge.backends import Rows, WeightSink
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.pipeline.calibrated import Learned
from edgeforge.pipeline.chunks import Chunks
from edgeforge.pipeline.journal import Entry, Journal, Piece, read_asked
from edgeforge.pipeline.resuming import still_there
from edgeforge.pipeline.walk import Consumer, is_step, walk
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import Calibration
from edgeforge.quantization.scheme import QuantizedTensor

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """One bundle's weights to be, in `folder`. `learned`: the tensors whose codes were chosen on text."""

    plan: BuildPlan
    calibration: Calibration
    learned: Learned | None
    folder: Path
    journal: Journal

    @property
    def learned_names(self) -> tuple[str, ...]:
        return () if self.learned is None else self.learned.quantized.names


def fill(checkpoint: Checkpoint, fillings: Sequence[Filling], *, chunks: Chunks, progress: Progress) -> None:
    """Write all weights. UnusableInput for weights that no format holds, OSError for a full or broken disk."""
    if not fillings:
        return
    with ExitStack() as stack:
        consumers = [_consumer(checkpoint, each, stack, chunks, progress) for each in fillings]
        walk(
            checkpoint,
            consumers,
            threads=chunks.threads,
            progress=partial(progress, "quantize"),
            skip=fillings[0].learned_names,  # text chooses the codes of one target at a time
            elements=chunks.elements,
        )


def _consumer(
    checkpoint: Checkpoint, filling: Filling, stack: ExitStack, chunks: Chunks, progress: Progress
) -> Consumer:
    plan = filling.plan
    backend = backends.load(plan.target.backend)
    sink = stack.enter_context(backend.sink(plan, filling.calibration, filling.folder))
    finished = _go_on(checkpoint, filling, sink, chunks, partial(progress, "verify"))
    put = partial(_put, sink, filling.journal)
    if filling.learned is not None:
        filling.learned.put_all(put)  # again, too: copying is quick
    return Consumer(
        schemes=plan.schemes,
        put=put,
        pre_quant_scales=filling.calibration.pre_quant_scales,
        algorithm="rtn" if plan.target.algorithm == "rtn" else "search",
        finished=finished,
    )


def _put(sink: WeightSink, journal: Journal, name: str, start: int, rows: Rows) -> None:
    extents = sink.put(name, start, rows)
    count = len(rows.codes) if isinstance(rows, QuantizedTensor) else len(rows)
    journal.record(Entry(piece=Piece(name, start, start + count), extents=extents))


def _go_on(
    checkpoint: Checkpoint, filling: Filling, sink: WeightSink, chunks: Chunks, progress: Callable[[int, int], None]
) -> frozenset[Piece]:
    """The pieces that an earlier build finished and that are still there, byte for byte."""
    journal, finished = filling.journal, set[Piece]()
    if read_asked(journal.path) is None:
        return frozenset()
    wanted = {name: checkpoint.tensor(name).shape for name in checkpoint.names if name not in filling.learned_names}

    def is_wanted(piece: Piece) -> bool:
        return piece.name in wanted and is_step(wanted[piece.name], piece.start, piece.stop, chunks.elements)

    def kept() -> Iterator[Entry]:
        for entry in still_there(journal.path, filling.folder, is_wanted, threads=chunks.threads, progress=progress):
            sink.keep(entry.extents)
            finished.add(entry.piece)
            yield entry

    journal.go_on(kept())
    return frozenset(finished)


@contextmanager
def telling_what_is_left(fillings: Sequence[Filling]) -> Iterator[None]:
    """An error that goes through this says how much of the work is kept, and how to go on with it."""
    try:
        yield
    except BaseException as error:
        linears = [(each.journal, linear) for each in fillings for linear in each.plan.architecture.linears()]
        done = sum(1 for journal, linear in linears if journal.rows_done(linear.name) >= linear.out_features)
        if any(each.journal.path.exists() for each in fillings):
            error.add_note(
                f"{done} of {len(linears)} linears are done: run the same command to go on; --fresh starts again"
            )
        raise
