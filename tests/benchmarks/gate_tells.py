"""The gate, on a model whose true loss is known to be large or small: 4 bits rounded to nearest fail, 8 pass.

    python tests/benchmarks/gate_tells.py [--chunks 8] [--tasks] [--limit lambada_openai=500,mmlu=5]

The bundles are built of the shuffled demo (see fidelity_subjects.py) and judged under the cpu target's limits: on
WikiText-2's text, twice, the second time from what the first one stored; with `--tasks` on benchmark tasks as well,
from the shared data files, and last on 30 items of LAMBADA, which must be too few for any. What the models answered is
kept: an interrupted run goes on, and more items cost the new ones only. (Of `wikitext`, fewer than 30 articles decide
nothing.)
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from big_model import cache_folder, data_folder  # noqa: E402
from fidelity_subjects import Subject, shuffled_demo  # noqa: E402

from edgeforge.hardware import Target, load_target  # noqa: E402
from edgeforge.pipeline import BuildOptions, build, resolve_target  # noqa: E402
from edgeforge.pipeline.proving import ProofOptions, prove  # noqa: E402
from edgeforge.validation import ValidationReport, reference_store, validate  # noqa: E402
from edgeforge.validation.findings import TaskFindings  # noqa: E402
from edgeforge.validation.gate import Check, Verdict  # noqa: E402
from edgeforge.validation.tasks import TaskOptions  # noqa: E402

CONTEXT = 1024  # the longest of MMLU's questions fit
LIMIT = "lambada_openai=500,mmlu=5"
FEW = "lambada_openai=30"
WORST: tuple[Verdict, ...] = ("pass", "undecided", "fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A way of storing the model, rounded to nearest, and what must be said of it on text and on tasks.

    `on_tasks` None: its true loss is about the limit itself, and any verdict may be right.
    """

    scheme: str
    group_size: int | None
    on_text: Verdict
    on_tasks: Verdict | None


CANDIDATES = (
    Candidate(scheme="w4a16", group_size=128, on_text="fail", on_tasks="fail"),
    Candidate(scheme="w4a16", group_size=32, on_text="fail", on_tasks=None),
    Candidate(scheme="w8a16", group_size=None, on_text="pass", on_tasks="pass"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=8, help="of 512 tokens, half of which are scored")
    parser.add_argument("--tasks", action="store_true", help="judge on benchmark tasks, too")
    parser.add_argument("--limit", default=LIMIT, help=f"items of each task; {LIMIT} unless given")
    options = parser.parse_args()
    cache = cache_folder() / "gate"
    subject = shuffled_demo(cache, 0, options.chunks)
    reference_store.root = lambda: cache / "answers"
    wrong = 0
    for each in CANDIDATES:
        target = resolve_target(
            load_target("cpu"), scheme=each.scheme, group_size=each.group_size, context=CONTEXT, algorithm="rtn"
        )
        bundle = _built(cache / f"{each.scheme}-{target.group_size}-{CONTEXT}", target, subject)
        wrong += not _text_tells(bundle, subject, target, options.chunks, each.on_text)
        if options.tasks:
            wrong += not _tasks_tell(bundle, subject, options.limit, each.on_tasks)
            wrong += not _tasks_tell(bundle, subject, FEW, "undecided")
    return 1 if wrong else 0


def _built(bundle: Path, target: Target, subject: Subject) -> Path:
    if not bundle.exists():
        build(
            BuildOptions(target=target, model=str(subject.model), out=bundle, validate=False), progress=lambda *_: None
        )
    return bundle


def _text_tells(bundle: Path, subject: Subject, target: Target, chunks: int, expected: Verdict) -> bool:
    """Whether both reports are the same, and say what is expected."""
    reports: list[ValidationReport] = []
    for _ in range(2):
        started = time.perf_counter()
        text = subject.text.read_text(encoding="utf-8")
        reports.append(validate(bundle, subject.checkpoint, gate=target.gate, texts=[text], chunks=chunks))
        print(f"{bundle.name}: {reports[-1].verdict}, {time.perf_counter() - started:.1f} s")
    for check in reports[0].gate.checks:
        _tell(check)
    same = replace(reports[0], seconds=0.0) == replace(reports[1], seconds=0.0)
    return same and reports[0].verdict == expected


def _tasks_tell(bundle: Path, subject: Subject, limit: str, expected: Verdict | None) -> bool:
    """Whether the worst verdict of the tasks is the expected one, if one is."""
    limits = tuple((name, int(count)) for name, _, count in (word.partition("=") for word in limit.split(",")))
    names = tuple(name for name, _ in limits)
    report = prove(
        ProofOptions(
            bundle=bundle,
            reference=str(subject.model),
            chunks=1,
            tasks=TaskOptions(names=names, limits=limits, data=data_folder() / "benchmarks"),
        ),
        progress=lambda *_: None,
    )
    worst = max((task.check.verdict for task in report.findings.tasks), key=WORST.index)
    print(f"{bundle.name} on tasks, {limit}: {worst}")
    for task in report.findings.tasks:
        _tell(task.check, task)
    return expected is None or worst == expected


def _tell(check: Check, task: TaskFindings | None = None) -> None:
    line = f"  {check.figure} {check.value:.4f} ({check.lower_bound:.4f} .. {check.upper_bound:.4f}), at most "
    line += f"{check.limit:g}: {check.verdict}"
    if check.items_needed is not None:
        line += f", about {check.items_needed:,} would tell"
    if task is not None:
        figure = task.metrics[0]
        line += f"; {task.subset.items:,} items, {figure.name} {figure.reference:.4f} / {figure.candidate:.4f}, "
        line += f"-{task.lost} +{task.gained}, {task.reference_seconds:.0f} + {task.candidate_seconds:.0f} s"
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
