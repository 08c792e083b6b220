"""Tests that run beside each other share what is dear to make, and part the processors among them."""

import multiprocessing
import time
from pathlib import Path

import pytest
from once import made_once
from processors import share


class Worker:
    """The part of pytest's TempPathFactory that `made_once` needs, of one worker among several."""

    def __init__(self, run: Path, name: str) -> None:
        self.base = run / name

    def getbasetemp(self) -> Path:
        return self.base


def note_and_make(folder: Path) -> str:
    with (folder.parent / "made").open("a") as notes:
        notes.write("made\n")
    time.sleep(0.2)
    (folder / "product").write_text("dear")
    return "result"


def ask(run: Path, name: str) -> None:
    assert made_once(Worker(run, name), "thing", note_and_make) == "result"  # type: ignore[arg-type]
    assert (run / "thing" / "product").read_text() == "dear"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    return tmp_path


def test_workers_that_ask_at_the_same_time_make_it_once(run: Path) -> None:
    forks = multiprocessing.get_context("fork")
    workers = [forks.Process(target=ask, args=(run, f"gw{number}")) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (run / "made").read_text() == "made\n"


def test_after_a_failure_the_next_one_begins_with_an_empty_folder(run: Path) -> None:
    def fail(folder: Path) -> str:
        (folder / "half").touch()
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        made_once(Worker(run, "gw0"), "thing", fail)  # type: ignore[arg-type]
    ask(run, "gw1")
    assert [path.name for path in (run / "thing").iterdir()] == ["product"]


@pytest.mark.parametrize("processors", [{0}, {0, 1}, {2, 3, 7}, set(range(64))], ids=len)
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_workers_part_the_processors_and_none_goes_without(processors: set[int], workers: int) -> None:
    shares = [share(processors, worker=worker, workers=workers) for worker in range(workers)]
    assert all(shares) and set.union(*shares) == processors
    if len(processors) >= workers:
        assert sum(map(len, shares)) == len(processors)
    # A worker that replaces one that died has a higher number, and its share.
    assert share(processors, worker=workers, workers=workers) == shares[0]
