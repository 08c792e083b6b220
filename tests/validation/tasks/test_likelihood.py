"""Log-likelihoods come from blocks of logits, and are those of the whole text at once."""

import numpy as np
import pytest
from built import Build

from edgeforge.runtime.model import Model
from edgeforge.validation.tasks import likelihood
from edgeforge.validation.tasks.likelihood import Continuation, Likelihood, likelihoods


@pytest.fixture(scope="module")
def model(stories_f32: Build) -> Model:
    return stories_f32.load()


def found(model: Model, requests: list[Continuation]) -> list[Likelihood]:
    answers: dict[int, Likelihood] = {}
    likelihoods(model, requests, answers.__setitem__)
    return [answers[number] for number in range(len(requests))]


def expected(model: Model, request: Continuation) -> Likelihood:
    """All logits at once, in float64."""
    logits = model.score(request.inputs)[-request.count :].astype(np.float64)
    tokens = list(request.ids[-request.count :])
    rows = np.arange(len(tokens))
    nll = np.log(np.exp(logits).sum(axis=1)) - logits[rows, tokens]
    return Likelihood(log_probability=-float(nll.sum()), is_greedy=bool((logits.argmax(axis=1) == tokens).all()))


def greedy_text(model: Model, count: int) -> list[int]:
    ids = [1]
    for _ in range(count):
        ids.append(int(model.score(ids)[-1].argmax()))
    return ids


def test_blocks_of_a_text_are_the_whole_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of which some share all but their last token, and are asked for more or less of their ends."""
    ids = tuple(greedy_text(model, 40))
    other = (*ids[:-1], 7)
    requests = [
        *(Continuation(ids=text, count=count) for text in (ids, other) for count in (1, 2, 9, 40)),
        Continuation(ids=(1, 300, 5, 9), count=3),
    ]
    whole = [expected(model, request) for request in requests]
    assert {each.is_greedy for each in whole} == {True, False}
    for rows in (1, 7, 8, 512):
        monkeypatch.setattr(likelihood, "BLOCK_ROWS", rows)
        for ours, theirs in zip(found(model, requests), whole, strict=True):
            assert ours.is_greedy == theirs.is_greedy
            assert ours.log_probability == pytest.approx(theirs.log_probability, rel=1e-5, abs=1e-5)


def test_no_more_logits_are_held_than_a_block(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Llama's vocabulary, a text of 131,072 tokens would have 67 GB of them."""
    rows: list[int] = []
    score = Model.score

    def watched(self: Model, ids: tuple[int, ...], *, first: int = 0) -> object:
        logits = score(self, ids, first=first)
        rows.append(len(logits))
        return logits

    monkeypatch.setattr(Model, "score", watched)
    monkeypatch.setattr(likelihood, "BLOCK_ROWS", 16)
    found(model, [Continuation(ids=tuple(range(3, 103)), count=99)])
    assert rows == [16] * 6 + [3]
