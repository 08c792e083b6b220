"""Why a bench's figures should not be trusted: sentences for whoever reads them."""

import os
from collections.abc import Iterator, Sequence

from edgeforge.validation.benching.records import Case, Figures, MachineLimits, Surroundings
from edgeforge.validation.benching.traffic import Traffic

# Quartiles this far apart, over the median, hide the differences that a bench is asked about.
MOST_SPREAD = 0.10
# Of all processors' time. A busy core of sixteen passes: memory and cores are left.
MOST_OTHERS_SHARE = 0.10
MOST_STOLEN_SHARE = 0.02
# Of the processors' number: more wanted to run than half of them could.
MOST_LOAD_SHARE = 0.5
LEAST_FREQUENCY_SHARE = 0.7
# Of a prompt with its context. Two prompts may begin with the same token by chance.
MOST_REUSE_ERROR = 0.05
# Clocks and the count of bytes are good to a few percent.
TOLERANCE = 1.05


def doubts(
    cases: Sequence[Figures],
    *,
    new_tokens: int,
    traffic: Traffic | None,
    limits: MachineLimits | None,
    surroundings: Surroundings,
) -> tuple[str, ...]:
    """A sentence for each figure above a physical limit, and for each sign of a noisy machine."""
    impossible = _impossible(cases, new_tokens, traffic, limits) if traffic and limits else ()
    return (*impossible, *_reuse(cases), *_spread(cases, limits), *_noise(surroundings))


def case_text(case: Case) -> str:
    batch = f"{case.batch} sequences, " if case.batch > 1 else ""
    context = f" behind {case.context_tokens:,}" if case.context_tokens else ""
    return f"{batch}{case.prompt_tokens:,} prompt tokens{context}"


def _impossible(cases: Sequence[Figures], new_tokens: int, traffic: Traffic, limits: MachineLimits) -> Iterator[str]:
    for figures in cases:
        best = limits.read_bytes_per_s.most
        bound = traffic.decode_tokens_per_s(figures.case, new_tokens=new_tokens, bytes_per_s=best)
        found = figures.decode_tokens_per_s.median
        if found > TOLERANCE * bound:
            yield (
                f"decode ({case_text(figures.case)}) at {found:,.1f} tokens/s is above the {bound:,.1f} that this "
                "machine's memory allows: a measurement is wrong, or a cache holds the weights"
            )


def _reuse(cases: Sequence[Figures]) -> Iterator[str]:
    for figures in cases:
        case = figures.case
        contexts = case.batch * case.context_tokens
        if abs(figures.reused_tokens - contexts) > MOST_REUSE_ERROR * (contexts + case.batch * case.prompt_tokens):
            yield (
                f"the cache held {figures.reused_tokens:,} tokens ({case_text(case)}) where it should hold "
                f"{contexts:,}: prefill and first token are those of another amount of work"
            )


def _spread(cases: Sequence[Figures], limits: MachineLimits | None) -> Iterator[str]:
    named = [
        (f"{name} ({case_text(figures.case)})", spread.relative)
        for figures in cases
        for name, spread in (("prefill", figures.prefill_tokens_per_s), ("decode", figures.decode_tokens_per_s))
    ]
    if limits is not None:
        named.append(("a plain read of memory", limits.read_bytes_per_s.relative))
    worst, spread = max(named, key=lambda pair: pair[1])
    if spread > MOST_SPREAD:
        more = sum(other > MOST_SPREAD for _, other in named) - 1
        others = f", and {more} more figures differ so" if more > 1 else ", and one more figure does" if more else ""
        yield f"the repeats differ: quartiles of {worst} lie {spread:.0%} of the median apart{others}"


def _noise(surroundings: Surroundings) -> Iterator[str]:
    others, stolen = surroundings.others_share, surroundings.stolen_share
    if others is not None and others > MOST_OTHERS_SHARE:
        yield f"other processes took {others:.0%} of the processors' time meanwhile"
    if stolen is not None and stolen > MOST_STOLEN_SHARE:
        yield f"the hypervisor gave {stolen:.0%} of the processors' time to other machines"
    load, processors = surroundings.load_average, os.cpu_count() or 1
    # Where others' share is known, what ran before the bench need not worry anybody.
    if others is None and load is not None and load > MOST_LOAD_SHARE * processors:
        yield f"the load average was {load:.1f} on {processors} processors before anything was measured"
    if surroundings.throttled:
        yield "the processors were throttled, by their heat or by the container's quota"
    frequency = surroundings.frequency_share
    if frequency is not None and frequency < LEAST_FREQUENCY_SHARE:
        yield f"the processors ran at {frequency:.0%} of their highest frequency afterwards"
