"""Items that one model got right and the other wrong, as text that people read."""

from collections.abc import Sequence
from typing import Any

from edgeforge.validation.findings import Flip
from edgeforge.validation.tasks.figures import Sample

LONGEST = 600  # characters of a prompt's end, and of an answer's beginning
MOST = 20


def show(name: str, reference: Sequence[Sample], candidate: Sequence[Sample], metric: str) -> list[Flip]:
    """The flips of one part; `reference` and `candidate` are its samples, item by item, under one filter."""
    found = []
    for theirs, ours in zip(reference, candidate, strict=True):
        before, after = float(theirs[metric]), float(ours[metric])
        if before != after:
            found.append(
                Flip(
                    item=f"{name}/{theirs['doc_id']}",
                    prompt=_end(str(theirs["arguments"][0][0])),
                    expected=_expected(theirs),
                    reference_answer=_answer(theirs),
                    candidate_answer=_answer(ours),
                    lost=before > after,
                )
            )
    return found


def pick(flips: Sequence[Flip]) -> tuple[Flip, ...]:
    """What a report shows: lost ones first."""
    return tuple(sorted(flips, key=lambda flip: not flip.lost)[:MOST])


def _expected(sample: Sample) -> str:
    target, choices = sample["target"], _choices(sample)
    if choices and isinstance(target, int) and 0 <= target < len(choices):
        return choices[target]
    return _beginning(str(target).strip())


def _answer(sample: Sample) -> str:
    responses: Sequence[Any] = [each[0] for each in sample["resps"]]
    if isinstance(responses[0], str):
        return _beginning(responses[0].strip())
    choices = _choices(sample)
    if choices:
        likelihoods = [float(response[0]) for response in responses]
        return choices[likelihoods.index(max(likelihoods))]
    log_probability, is_greedy = responses[0]
    return f"{'the likeliest' if is_greedy else 'not the likeliest'} (log-probability {float(log_probability):.2f})"


def _choices(sample: Sample) -> list[str]:
    """The continuations that were weighed against one another; none where the model wrote its answer."""
    arguments = sample["arguments"]
    if len(arguments) < 2 or not isinstance(arguments[0][1], str):
        return []
    return [str(each[1]).strip() for each in arguments]


def _end(text: str) -> str:
    return text if len(text) <= LONGEST else "…" + text[-LONGEST:]


def _beginning(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
