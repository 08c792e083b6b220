"""How much of a model is left at a size: EdgeForge's bundles and llama.cpp's types on the same tokens.

    ci/peers                                        # once: llama.cpp under .peers/
    python tests/benchmarks/fidelity.py             # everything, three seeds; writes docs/fidelity.md and .svg
    python tests/benchmarks/fidelity.py --quick     # one seed and 4 chunks, into the benchmarks' cache
    python tests/benchmarks/fidelity.py --only 'auto-*' --seeds 0
    python tests/benchmarks/fidelity.py --again 'auto-92.0' 'step-*'
    python tests/benchmarks/fidelity.py --document  # from what was measured, measure nothing

Each measurement is kept as a file and not made again; stop and start as you like. An item that cannot be made (a
missing program, an option that this version does not know) is named at the end and left out of the document.
"""

import argparse
import fnmatch
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # the shuffle lives with the tests

from big_model import cache_folder  # noqa: E402
from fidelity_bundles import measure_bundle  # noqa: E402
from fidelity_document import write_document  # noqa: E402
from fidelity_items import F16, ITEMS, TEXT, Item  # noqa: E402
from fidelity_llama_cpp import LlamaCpp, find_converter_python, find_llama_cpp  # noqa: E402
from fidelity_records import Record, Records  # noqa: E402
from fidelity_subjects import Subject, shuffled_demo, stories, stories_calibration_text, write_once  # noqa: E402

from edgeforge import __version__  # noqa: E402

CHUNKS = 40
QUICK_CHUNKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What the command line asked for, and where things are."""

    cache: Path
    records: Records
    seeds: tuple[int, ...]
    chunks: int
    threads: int

    def chunks_of(self, item: Item) -> int:
        return min(self.chunks, item.chunks or self.chunks)

    def todo(self, only: Sequence[str]) -> Iterator[tuple[Item, int]]:
        """One seed after the other, so that a document can be written early."""
        for seed in self.seeds:
            for item in ITEMS:
                if (item.all_seeds or seed == self.seeds[0]) and _matches(item.name, only or ["*"]):
                    yield item, seed

    def subject(self, item: Item, seed: int) -> Subject:
        if item.table == "stories":
            return stories(self.cache)
        return shuffled_demo(self.cache, seed, self.chunks_of(item))


def main() -> int:
    options = _parse()
    cache = cache_folder() / "fidelity"
    session = Session(
        cache=cache,
        records=Records(folder=cache / "records"),
        seeds=(options.seeds[0],) if options.quick else tuple(options.seeds),
        chunks=QUICK_CHUNKS if options.quick else options.chunks,
        threads=options.threads,
    )
    failures: list[str] = []
    if not options.document:
        failures = _measure_all(session, options.only, options.again)
    folder = options.out or (cache if options.quick else ROOT / "docs")
    write_document(folder, session.records, session.seeds, session.chunks)
    print(f"written: {folder / 'fidelity.md'}, {folder / 'fidelity.svg'}")
    for failure in failures:
        print(f"not measured: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the shuffle")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help=f"of WikiText-2 (default {CHUNKS})")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="items by name, * and ? allowed")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help="measure these again")
    parser.add_argument("--quick", action="store_true", help=f"one seed, {QUICK_CHUNKS} chunks, to try things out")
    parser.add_argument("--document", action="store_true", help="write the document, measure nothing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder of the document (default: docs)")
    return parser.parse_args()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _measure_all(session: Session, only: Sequence[str], again: Sequence[str]) -> list[str]:
    failures = []
    for item, seed in session.todo([*only, *again] if only else ()):
        chunks = session.chunks_of(item)
        known = session.records.load(item.name, seed, chunks)
        if known is not None and known.arguments == item.arguments and not _matches(item.name, again):
            continue
        print(f"{time.strftime('%H:%M:%S')} seed {seed} {item.name} ...", flush=True)
        started = time.perf_counter()
        try:
            record = _measure(session, item, seed)
        except RuntimeError as error:
            failures.append(f"{item.name}, seed {seed}: {_last_line(str(error))}")
            print(f"         {failures[-1]}", flush=True)
            continue
        session.records.save(record)
        print(f"         {_told(record)}, in {time.perf_counter() - started:.0f} s", flush=True)
    return failures


def _measure(session: Session, item: Item, seed: int) -> Record:
    """RuntimeError with the reason where the item cannot be made."""
    subject = session.subject(item, seed)
    measure = _measure_llama_cpp if item.table == "llama.cpp" else _measure_ours
    return measure(session, subject, item, seed)


def _measure_llama_cpp(session: Session, subject: Subject, item: Item, seed: int) -> Record:
    folder, python = find_llama_cpp(), find_converter_python()
    if folder is None or python is None:
        raise RuntimeError("llama.cpp is not here; run ci/peers, or set EDGEFORGE_LLAMA_CPP")
    tool = LlamaCpp(folder=folder, python=python, subject=subject, threads=session.threads)
    file = tool.measure(item.arguments[0], imatrix="imatrix" in item.arguments, alone=seed == session.seeds[0])
    return Record(
        item=item.name,
        seed=seed,
        chunks=session.chunks_of(item),
        arguments=item.arguments,
        version=f"llama.cpp {_llama_cpp_version(folder)}",
        bytes=file.bytes,
        seconds=file.seconds,
        peak_bytes=file.peak_bytes,
        as_run=file.as_run,
        weights_alone=file.weights_alone,
    )


def _measure_ours(session: Session, subject: Subject, item: Item, seed: int) -> Record:
    text = subject.folder / "calibration.txt"
    if TEXT in item.arguments:
        write_once(text, lambda: stories_calibration_text().encode())
    files = {TEXT: str(text), F16: str(Path(__file__).with_name("cpu-f16.toml"))}
    arguments = tuple(files.get(word, word) for word in item.arguments)
    alone = item.alone and seed == session.seeds[0]  # as llama.cpp's types are
    bundle = measure_bundle(subject, arguments, name=item.name, threads=session.threads, alone=alone)
    return Record(
        item=item.name,
        seed=seed,
        chunks=session.chunks_of(item),
        arguments=item.arguments,
        version=f"edgeforge {__version__} {_commit()}",
        bytes=bundle.weight_bytes,
        seconds=bundle.build.seconds,
        peak_bytes=bundle.build.peak_bytes,
        as_run=bundle.as_run,
        weights_alone=bundle.weights_alone,
        prefill=None if bundle.speed is None else bundle.speed.prefill_tokens_per_s,
        decode=None if bundle.speed is None else bundle.speed.decode_tokens_per_s,
    )


def _told(record: Record) -> str:
    run, alone = record.as_run, record.weights_alone
    kl = run.mean_kl_divergence
    weights = "" if alone is None else f" (weights alone {alone.mean_kl_divergence.value:.4f})"
    return (
        f"{record.bytes / 1e6:.2f} MB, divergence {kl.value:.4f} ± {kl.standard_error:.4f}{weights}, "
        f"perplexity {run.perplexity.value:.3f} "
        f"(reference {run.reference_perplexity.value:.3f}), made in {record.seconds:.0f} s "
        f"with {record.peak_bytes / 1e9:.2f} GB"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.lower().startswith("error")), lines[-1])


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, check=False, text=True).stdout.strip()


def _llama_cpp_version(folder: Path) -> str:
    program = folder / "build" / "bin" / "llama-perplexity"
    done = subprocess.run([str(program), "--version"], capture_output=True, check=False, text=True)
    words = (done.stdout + done.stderr).split("version:")
    return words[1].split("\n")[0].strip() if len(words) > 1 else "unknown"


if __name__ == "__main__":
    sys.exit(main())
