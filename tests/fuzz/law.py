"""The law that every reader keeps for every input: an answer or a refusal, soon, and in little memory."""

import hashlib
import signal
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from readers import REFUSALS, Reader

SEEDS = Path(__file__).parent / "seeds"
MOST_SEED_BYTES = 16 << 10
DEADLINE_S = 10.0
MEMORY_BYTES = 192 << 20
"""Python's own, while an input of some kilobytes is read. Reading the valid files takes 3 MB at most."""


class Hang(BaseException):
    """An input took longer than DEADLINE_S. No Exception, so that nobody takes it for his own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """An input that broke the law. `key` is the same for inputs that fail at the same place."""

    reader: str
    key: str
    what: str
    data: bytes


def broken(reader: Reader, data: bytes, *, measured: bool = True) -> Finding | None:
    """What is wrong with how the reader took this input; None where it kept the law.

    `measured`: hold it to MEMORY_BYTES too, which makes Python several times as slow.
    """
    if measured:
        tracemalloc.start()
    try:
        with _deadline():
            reader.read(data)
    except REFUSALS:
        pass
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames) if "/edgeforge/" in frame.filename), frames[-1])
        what = "".join(traceback.format_exception(error))[-1500:]
        key = f"{type(error).__name__} {Path(place.filename).name}:{place.name}"
        return Finding(reader=reader.name, key=key, what=what, data=data)
    finally:
        peak = tracemalloc.get_traced_memory()[1] if measured else 0
        tracemalloc.stop()
    if peak > MEMORY_BYTES:
        return Finding(reader=reader.name, key="memory", what=f"{peak:,} bytes", data=data)
    return None


def keep(finding: Finding) -> Path | None:
    """The input as a seed that the quick tests replay; None where it is too large to keep."""
    if len(finding.data) > MOST_SEED_BYTES:
        return None
    folder = SEEDS / finding.reader
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(finding.data).hexdigest()[:12]
    path.write_bytes(finding.data)
    return path


def seeds_of(name: str) -> list[bytes]:
    """The inputs that once broke the law."""
    return [path.read_bytes() for path in sorted((SEEDS / name).glob("*"))]


@contextmanager
def _deadline() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(f"after {time.perf_counter() - started:.1f} s")

    started = time.perf_counter()
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
