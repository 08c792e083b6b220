"""Perplexity and divergence by position in one long input, up to the end of the context.

What goes wrong at a distance (rotary tables, their scaling, a cache of few bits) does not show in chunks of 512 tokens.
Both models read the same text (`prose`), all of it; of each range of positions some tokens are scored, in short runs
spread evenly. The last tokens before the context's end are a range of their own.
"""

from collections.abc import Sequence
from itertools import pairwise

from edgeforge.runtime.model import Model
from edgeforge.validation.findings import PositionRange, ProbeFigure
from edgeforge.validation.probes.common import FEWEST_POSITIONS, Found, Subject, Tell, skipped
from edgeforge.validation.probes.prose import long_ids
from edgeforge.validation.probes.scoring import compare_answers, judge_tokens, worst_of
from edgeforge.validation.statistics import TokenValues, join, summarize

MOST_POSITIONS = 32_768  # of longer contexts the beginning is read; a processor takes minutes for it
FIRST_RANGE = 512
LAST_RANGE = 512
RUNS, RUN_TOKENS = 8, 64  # scored of each range

Range = tuple[int, int]


def probe_positions(subject: Subject, tell: Tell) -> Found:
    """Each range's perplexity ratio held against the target's limit."""
    length = min(subject.context_length, MOST_POSITIONS)
    if length < FEWEST_POSITIONS:
        return skipped(f"A context of {length} tokens has no long inputs: {FEWEST_POSITIONS:,} are needed.")
    tokenizer = subject.reference
    ids = long_ids(lambda text: tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(""), length)
    values = read_ranges(subject.reference, subject.candidate, ids, ranges_of(length), tell)
    rows = tuple(position_row(each, part) for each, part in values)
    checks = [
        judge_tokens(f"tokens {each[0]:,} to {each[1]:,}", part, subject.limits, tests=len(values))
        for each, part in values
    ]
    worst, last = max(rows, key=_ratio), rows[-1]
    told = f"it is largest at tokens {worst.start:,} to {worst.stop:,}, {_ratio(worst):.3f}"
    verdict, summary = worst_of(checks, everything=f"all of {length:,} positions", told=told)
    figures = (
        ProbeFigure(name="positions read", reference=None, candidate=length, unit="tokens"),
        ProbeFigure(
            name=f"perplexity of the last {last.stop - last.start:,} tokens",
            reference=last.reference_perplexity,
            candidate=last.perplexity,
            unit="",
        ),
    )
    return Found(verdict=verdict, summary=summary, figures=figures, positions=rows)


def ranges_of(length: int) -> list[Range]:
    """0 to 512, then doubling; the last 512 of `length` apart."""
    edges = [0, FIRST_RANGE]
    while edges[-1] < length - LAST_RANGE:
        edges.append(min(2 * edges[-1], length - LAST_RANGE))
    edges.append(length)
    return list(pairwise(edges))


def read_ranges(
    reference: Model, candidate: Model, ids: Sequence[int], ranges: Sequence[Range], tell: Tell
) -> list[tuple[Range, TokenValues]]:
    """The values of each range's scored tokens, in order; both models read all of `ids` before the last.

    From the end to the beginning: a model keeps what it read last, so that everything is read once, by the first call,
    and afterwards only runs are.
    """
    found: list[tuple[Range, TokenValues]] = []
    for each in reversed(ranges):
        parts = []
        for start, stop in reversed(runs_of(max(1, each[0]), each[1])):  # nothing comes before token 0
            theirs, ours = (model.score(ids[: stop - 1], first=start - 1) for model in (reference, candidate))
            parts.append(compare_answers(theirs, ours, ids[start:stop]))
        found.append((each, join(parts[::-1])))
        tell(1 - each[0] / len(ids))
    return found[::-1]


def runs_of(start: int, stop: int) -> list[Range]:
    """RUNS runs of RUN_TOKENS, evenly over [start, stop); all of it where there is no more."""
    if stop - start <= RUNS * RUN_TOKENS:
        return [(place, min(place + RUN_TOKENS, stop)) for place in range(start, stop, RUN_TOKENS)]
    step = (stop - start) / RUNS
    firsts = [start + int(step * run) for run in range(RUNS)]
    return [(first, first + RUN_TOKENS) for first in firsts]


def position_row(each: Range, values: TokenValues) -> PositionRange:
    summary = summarize(values)
    return PositionRange(
        start=each[0],
        stop=each[1],
        tokens=len(values),
        reference_perplexity=summary.reference_perplexity.value,
        perplexity=summary.perplexity.value,
        mean_kl_divergence=summary.mean_kl_divergence.value,
    )


def _ratio(row: PositionRange) -> float:
    return row.perplexity / row.reference_perplexity
