"""Facts hidden in long inputs: does the bundle still find what the original finds?

Locker numbers of people are strewn between the sentences of `prose`, and asked for after 512, 1,024, 2,048... tokens
and near the context's end, each time at eight depths. The answer counts as right where the right number is likelier
than four others, two of which belong to somebody else in the text and two to nobody: small models, too, can be asked
that, which cannot answer in words. McNemar's exact test over all questions says whether the bundle lost more than
chance would take; where the original itself finds no more than guessing would, there is nothing to compare.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeforge.runtime.model import Model
from edgeforge.validation.probes.common import (
    FEWEST_POSITIONS,
    SIGNIFICANCE,
    Found,
    Pairs,
    Subject,
    Tell,
    share,
    skipped,
)
from edgeforge.validation.probes.positions import MOST_POSITIONS
from edgeforge.validation.probes.prose import paragraphs

RESERVE = 64  # tokens for a question and its answer
DEPTHS = 8
SHORTEST = 512
CHOICES = 5
SEED = 20_240_727

NAMES = (
    *("Adam", "Bella", "Carlos", "Diana", "Edward", "Fiona", "George", "Hannah", "Ivan", "Julia", "Kevin", "Laura"),
    *("Martin", "Nora", "Oscar", "Paula", "Quentin", "Rosa", "Simon", "Teresa", "Ursula", "Victor", "Wendy", "Xavier"),
    *("Yvonne", "Zoe", "Albert", "Brigitte", "Conrad", "Dorothy", "Eric", "Flora", "Gordon", "Helen", "Igor", "Jane"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """A fact, and where in the text it ends."""

    name: str
    value: str
    place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Asked after `length` tokens. `prefix`: what all answers share; `answers`: what follows, the right one first."""

    length: int
    prefix: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def probe_needle(subject: Subject, tell: Tell) -> Found:
    """The share of questions answered rightly, by both models."""
    context = min(subject.context_length, MOST_POSITIONS)
    if context < FEWEST_POSITIONS:
        return skipped(f"A context of {context} tokens has no long inputs: {FEWEST_POSITIONS:,} are needed.")
    ids, needles = haystack(subject.reference, context - RESERVE)
    questions = [
        ask(subject.reference, needles, needle, length)
        for length in lengths_of(context - RESERVE)
        for needle in asked(needles, length)
    ]
    reference = answer(subject.reference, ids, questions, lambda done: tell(done / 2))
    candidate = answer(subject.candidate, ids, questions, lambda done: tell((1 + done) / 2))
    return judge_needles([question.length for question in questions], Pairs(reference=reference, candidate=candidate))


def judge_needles(lengths: Sequence[int], pairs: Pairs) -> Found:
    """The verdict on questions asked after so many tokens."""
    items, ours, theirs = len(lengths), sum(pairs.candidate), sum(pairs.reference)
    figures = [share("numbers found", theirs / items, ours / items)]
    for length in sorted(set(lengths)):
        rows = [row for row, each in enumerate(lengths) if each == length]
        shares = [sum(each[row] for row in rows) / len(rows) for each in (pairs.reference, pairs.candidate)]
        figures.append(share(f"after {length:,} tokens", *shares))
    if guessing(theirs, items) > SIGNIFICANCE:
        return Found(
            verdict="skipped",
            summary=f"The original itself finds {theirs} of {items} numbers, as guessing among {CHOICES} may.",
            figures=tuple(figures),
        )
    told = f"{ours} of {items} numbers hidden in up to {max(lengths):,} tokens are found, the original finds {theirs}"
    if pairs.surely_worse:
        told += f": more than chance would take (p = {pairs.p_value:.4f})"
    return Found(verdict="fail" if pairs.surely_worse else "pass", summary=f"{told}.", figures=tuple(figures))


def guessing(right: int, items: int) -> float:
    """How likely guesses among CHOICES are right at least that often."""
    p = 1 / CHOICES
    return sum(math.comb(items, k) * p**k * (1 - p) ** (items - k) for k in range(right, items + 1))


def haystack(model: Model, length: int) -> tuple[list[int], list[Needle]]:
    """`length` ids with needles between their sentences, `spacing` apart."""
    random = np.random.default_rng(SEED)
    values = random.choice(np.arange(1000, 10_000), len(NAMES), replace=False)
    unused = [(name, str(value)) for name, value in zip(NAMES, values, strict=True)]
    ids = model.encode("")
    needles: list[Needle] = []
    due = 0
    for sentence in sentences():
        if len(ids) >= due and unused:
            name, value = unused.pop(0)
            ids += model.encode(f"{fact(name)} {value}.\n\n", add_special_tokens=False)
            needles.append(Needle(name=name, value=value, place=len(ids)))
            due += spacing(due)
        if len(ids) >= length:
            break
        ids += model.encode(sentence, add_special_tokens=False)
    return ids[:length], needles


def sentences() -> Iterator[str]:
    """Of `prose`, each with the white space after it."""
    for paragraph in paragraphs():
        yield from re.split(r"(?<=[.!?] )", paragraph)


def spacing(place: int) -> int:
    """From one needle to the next: DEPTHS of them in the first SHORTEST tokens, then as many in each text twice as long
    as the one before.
    """
    return max(SHORTEST, 1 << place.bit_length()) // DEPTHS


def fact(name: str) -> str:
    return f"The locker number of {name} is"


def lengths_of(length: int) -> list[int]:
    """SHORTEST, doubling, and `length` itself in place of one that is nearly as long."""
    lengths: list[int] = []
    while SHORTEST << len(lengths) < 0.8 * length:
        lengths.append(SHORTEST << len(lengths))
    return [*lengths, length]


def asked(needles: Sequence[Needle], length: int) -> list[Needle]:
    """DEPTHS of the needles within `length` tokens, evenly spread."""
    there = [needle for needle in needles if needle.place <= length]
    depths = [length * (depth + 0.5) / DEPTHS for depth in range(DEPTHS)]
    nearest = [there[int(np.argmin([abs(needle.place - depth) for needle in there]))] for depth in depths]
    return list(dict.fromkeys(nearest))


def ask(model: Model, needles: Sequence[Needle], needle: Needle, length: int) -> Question:
    """The question for one needle: its own value, two of others, and two of nobody's."""
    random = np.random.default_rng((SEED, length, needle.place))
    others = [each.value for each in needles if each is not needle and each.place <= length]
    known = {each.value for each in needles}
    seen = [others[row] for row in random.permutation(len(others))[: CHOICES // 2]]
    unseen = [str(value) for value in random.integers(1000, 10_000, 8 * CHOICES) if str(value) not in known]
    choices = [needle.value, *seen, *dict.fromkeys(unseen)][:CHOICES]
    spelled = [tuple(model.encode(f"\n\n{fact(needle.name)} {value}", add_special_tokens=False)) for value in choices]
    shared = next(place for place, column in enumerate(zip(*spelled, strict=False)) if len(set(column)) > 1)
    return Question(length=length, prefix=spelled[0][:shared], answers=tuple(each[shared:] for each in spelled))


def answer(model: Model, ids: Sequence[int], questions: Sequence[Question], tell: Tell) -> tuple[bool, ...]:
    """Whether the right answer is the likeliest of each question's.

    The latest questions come first: a model keeps what it read last, so that the text is read once.
    """
    right: dict[int, bool] = {}
    for row in sorted(range(len(questions)), key=lambda row: -questions[row].length):
        question = questions[row]
        before = [*ids[: question.length], *question.prefix]
        likelihoods = [
            log_likelihood(model.score([*before, *choice[:-1]], first=len(before) - 1), choice)
            for choice in question.answers
        ]
        right[row] = likelihoods[0] > max(likelihoods[1:])
        tell(len(right) / len(questions))
    return tuple(right[row] for row in range(len(questions)))


def log_likelihood(logits: NDArray[np.float32], ids: Sequence[int]) -> float:
    """Of ids [T] under logits [T, V], in nats."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    rows = np.arange(len(ids))
    return float((x[rows, list(ids)] - np.log(np.exp(x).sum(axis=1))).sum())
