"""Damage files and read them, for as long as you like; inputs that break the law become seeds in tests/fuzz/seeds.

    python tests/fuzz/run.py --minutes 15 [--reader gguf ...] [--seed 1]

Each reader works in a process of its own under a limit on its address space, so that a library that aborts is found
too. Where atheris is installed (pip install atheris, Python 3.11 to 3.13) its coverage chooses what to damage next;
without it, chance alone does.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

if TYPE_CHECKING:
    from readers import Reader

ADDRESS_SPACE_BYTES = 3 << 30
GRACE_S = 120
READERS_OF = ("edgeforge.hardware", "edgeforge.model", "edgeforge.planning", "edgeforge.publish", "edgeforge.runtime")


def main() -> int:
    """The exit code is 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--reader", action="append", help="only this one; may be given often")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readers = instrumented_readers(Path(folder, "files"))
        chosen = [readers[name] for name in asked.reader or readers]
        return supervise(chosen, asked.minutes * 60 / len(chosen), asked.seed, Path(folder))


def instrumented_readers(folder: Path) -> "dict[str, Reader]":
    """The readers, so imported that atheris sees which lines they reach, where it is installed."""
    if find_spec("atheris") is None:
        from readers import make_readers

        return make_readers(folder)
    import atheris

    with atheris.instrument_imports(include=list(READERS_OF), enable_loader_override=False):
        from readers import make_readers
    return make_readers(folder)


def supervise(readers: "list[Reader]", seconds: float, seed: int, folder: Path) -> int:
    """A process for each reader, one after the other, and again where it died before its time was over."""
    tried, found = Counter[str](), 0
    for number, reader in enumerate(readers):
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 1:
            count, findings = in_process(reader, left, seed + number, folder)
            tried[reader.name] += count
            found += len(findings)
            seed += 1000
            for finding in findings:
                print(f"{reader.name}: {finding}", flush=True)
        print(f"{reader.name}: {tried[reader.name]:,} inputs", flush=True)
    print(f"{tried.total():,} inputs, {found} findings")
    return 1 if found else 0


def in_process(reader: "Reader", seconds: float, seed: int, folder: Path) -> tuple[int, list[str]]:
    """(inputs, findings) of one process."""
    from law import Finding, keep

    told, current = folder / "told.json", folder / "current"
    told.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=work, args=(reader, seconds, seed, folder))
    process.start()
    process.join(seconds + GRACE_S)
    if process.is_alive():
        process.kill()
        process.join()
    count, findings = json.loads(told.read_text()) if told.exists() else (0, [])
    if current.exists():
        key = f"the process ended with {process.exitcode}"
        finding = Finding(reader=reader.name, key=key, what="", data=current.read_bytes())
        findings.append(f"{finding.key}\nkept as {keep(finding)}")
        current.unlink()
    return count, findings


class Trials:
    """Counts inputs, and keeps the first of every kind of finding."""

    def __init__(self, reader: "Reader", folder: Path) -> None:
        self.reader = reader
        self._folder = folder
        self._count = 0
        self._keys: set[str] = set()
        self._told: list[str] = []

    def of(self, data: bytes) -> None:
        from law import broken, keep

        current = self._folder / "current"
        current.write_bytes(data)
        finding = broken(self.reader, data, measured=False)
        self._count += 1
        if finding is not None and finding.key not in self._keys:
            self._keys.add(finding.key)
            self._told.append(f"{finding.key}\n{finding.what}\nkept as {keep(finding)}")
        current.unlink()
        if self._count % 20 == 0 or finding is not None:
            self.tell()

    def tell(self) -> None:
        (self._folder / "told.json").write_text(json.dumps([self._count, self._told]))


def work(reader: "Reader", seconds: float, seed: int, folder: Path) -> None:
    """Try one reader in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    trials = Trials(reader, folder)
    if find_spec("atheris") is None:
        by_chance(trials, seconds, seed)
    else:
        by_coverage(trials, seconds, seed, folder)
    trials.tell()


def by_chance(trials: Trials, seconds: float, seed: int) -> None:
    chance, until = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < until:
        data = trials.reader.original
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            data = trials.reader.mutate(data, chance)
        trials.of(data)


def by_coverage(trials: Trials, seconds: float, seed: int, folder: Path) -> None:
    """libFuzzer ends the process itself. Half of its inputs are damaged with knowledge of the format, half without."""
    import atheris

    corpus = Path(tempfile.mkdtemp(dir=folder))
    (corpus / "original").write_bytes(trials.reader.original)

    def damage(data: bytes, most: int, number: int) -> bytes:
        chance = random.Random(number)
        damaged = trials.reader.mutate(data, chance) if number % 2 else atheris.Mutate(data, most)
        return bytes(damaged)[:most]

    length = 4 * len(trials.reader.original) + 20_000
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed + 1}", f"-max_len={length}"]
    options += ["-timeout=0", "-rss_limit_mb=0", "-detect_leaks=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], trials.of, custom_mutator=damage)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
