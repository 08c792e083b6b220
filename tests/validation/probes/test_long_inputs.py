"""Positions and needles: what goes wrong at a distance is found there and nowhere else."""

import re
from pathlib import Path

import numpy as np
import pytest
from built import Build, build_once

from edgeforge.runtime import load
from edgeforge.validation.data import default_texts
from edgeforge.validation.probes import needle, positions, scoring
from edgeforge.validation.probes.common import Pairs
from edgeforge.validation.probes.prose import long_ids, paragraphs
from edgeforge.validation.statistics import compare_logits, summarize

from .broken import changed, short_rotary, subject, unheard


def test_ranges_cover_the_context_and_its_end_is_one_of_its_own() -> None:
    assert positions.ranges_of(4096) == [(0, 512), (512, 1024), (1024, 2048), (2048, 3584), (3584, 4096)]
    assert positions.ranges_of(8192)[-2:] == [(4096, 7680), (7680, 8192)]
    assert positions.ranges_of(1024) == [(0, 512), (512, 1024)]
    for length in range(1024, 9000, 77):
        ranges = positions.ranges_of(length)
        assert [each[0] for each in ranges] == [0, *(each[1] for each in ranges[:-1])]
        assert ranges[-1] == (length - 512, length) and all(start < stop for start, stop in ranges)
        for start, stop in ranges:
            runs = positions.runs_of(start, stop)
            tokens = [token for run in runs for token in range(*run)]
            assert tokens == sorted(set(tokens)) and start <= tokens[0] and tokens[-1] < stop
            assert len(tokens) == min(512, stop - start)


def test_figures_are_those_of_the_whole_text_at_once(stories_f32: Build, stories_int4: Build) -> None:
    reference, candidate = stories_f32.load(), stories_int4.load()
    ids = long_ids(lambda text: reference.encode(text, add_special_tokens=False), reference.encode(""), 400)
    ranges = [(0, 100), (100, 300), (300, 400)]
    found = positions.read_ranges(reference, candidate, ids, ranges, unheard)
    whole = compare_logits(reference.score(ids)[:-1], candidate.score(ids)[:-1], np.array(ids[1:], np.int64))
    for (start, stop), values in found:
        row = positions.position_row((start, stop), values)
        part = summarize(whole.part(max(0, start - 1), stop - 1))
        assert row.tokens == part.scored_tokens
        assert row.perplexity == pytest.approx(part.perplexity.value, rel=1e-3)
        assert row.reference_perplexity == pytest.approx(part.reference_perplexity.value, rel=1e-3)
        assert row.mean_kl_divergence == pytest.approx(part.mean_kl_divergence.value, rel=0.02)


def test_rotary_tables_that_end_too_early_fail_where_they_end(
    stories_f32: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FEWEST_POSITIONS", 512), ("FIRST_RANGE", 128), ("LAST_RANGE", 128)):
        monkeypatch.setattr(positions, name, value)
    monkeypatch.setattr(scoring, "ITEM_TOKENS", 4)  # of so few tokens, so many items
    reference = stories_f32.load()
    sound = positions.probe_positions(subject(reference, stories_f32.load()), unheard)
    assert sound.verdict == "pass"
    assert [(row.start, row.stop) for row in sound.positions] == [(0, 128), (128, 256), (256, 384), (384, 512)]
    assert all(row.mean_kl_divergence < 1e-6 for row in sound.positions)
    broken = load(changed(stories_f32.bundle, tmp_path / "b", short_rotary(stories_f32.plan, 256)))
    found = positions.probe_positions(subject(reference, broken), unheard)
    assert found.verdict == "fail"
    near, far = found.positions[:2], found.positions[2:]
    assert all(row.mean_kl_divergence < 1e-6 for row in near)
    assert all(row.mean_kl_divergence > 0.01 for row in far)
    assert "tokens 0 to 128" not in found.summary and "tokens 384 to 512" in found.summary


def test_short_contexts_are_skipped(stories_f32: Build) -> None:
    both = subject(stories_f32.load(), stories_f32.load())
    for probe in (positions.probe_positions, needle.probe_needle):
        found = probe(both, unheard)
        assert (found.verdict, found.summary) == (
            "skipped",
            "A context of 512 tokens has no long inputs: 1,024 are needed.",
        )


def test_the_text_never_ends_and_repeats_itself_in_other_orders() -> None:
    count = sum(bool(part.strip()) for text in default_texts() for part in text.split("\n\n"))
    own = paragraphs()
    first, second, third = ([next(own) for _ in range(count)] for _ in range(3))
    assert sorted(first) == sorted(second) == sorted(third)
    assert first != second and second != third
    assert all(part.endswith("\n\n") for part in first)


def test_every_needle_that_is_asked_for_lies_in_what_was_read(stories_f32: Build) -> None:
    model = stories_f32.load()  # its tokenizer is what counts
    ids, needles = needle.haystack(model, 4032)
    text = model.decode(ids)
    assert len(ids) == 4032
    assert needle.lengths_of(4032) == [512, 1024, 2048, 4032]
    assert needle.lengths_of(8128) == [512, 1024, 2048, 4096, 8128]
    assert needle.lengths_of(960) == [512, 960]
    for length in needle.lengths_of(4032)[1:]:  # in 512 of its tokens are few sentences
        asked = needle.asked(needles, length)
        assert len(asked) == needle.DEPTHS
        depths = [each.place / length for each in asked]
        assert depths[0] < 0.2 and 0.8 < depths[-1] <= 1 and depths == sorted(depths)
        for each in asked:
            question = needle.ask(model, needles, each, length)
            assert needle.fact(each.name) + " " + each.value in model.decode(ids[: each.place])
            spelled = [re.findall(r"\d{4}", model.decode([*question.prefix, *choice])) for choice in question.answers]
            assert spelled[0] == [each.value] and len({tuple(choice) for choice in spelled}) == needle.CHOICES
            assert sum(f" {choice}." in text for (choice,) in spelled) == 3


class Knows:
    """A model that knows some people's numbers, and nothing else."""

    def __init__(self, build: Build, knows: dict[str, str]) -> None:
        self._model, self._knows = build.load(), knows

    def score(self, ids: list[int], *, first: int = 0) -> np.ndarray:
        logits = np.zeros((len(ids) - first, 512), np.float32)
        for row in range(len(logits)):
            expected = self._after(self._model.decode(ids[: first + row + 1]))
            if expected is not None:
                logits[row, expected] = 5.0
        return logits

    def _after(self, text: str) -> int | None:
        """The next id, where the text ends within what is known of somebody."""
        for name, value in self._knows.items():
            known = self._model.encode(f"\n\n{needle.fact(name)} {value}", add_special_tokens=False)
            for count in range(1, len(known)):
                begun = self._model.decode(known[:count]).strip()
                if begun.startswith(needle.fact(name)) and text.endswith(begun):
                    return known[count]
        return None


def test_who_knows_the_numbers_is_right_and_who_forgot_them_fails(stories_f32: Build) -> None:
    model = stories_f32.load()
    ids, needles = needle.haystack(model, 1000)
    asked = needle.asked(needles, 1000)
    questions = [needle.ask(model, needles, each, 1000) for each in asked]
    all_of_them = {each.name: each.value for each in asked}
    knows = needle.answer(Knows(stories_f32, all_of_them), ids, questions, unheard)
    assert knows == (True,) * 8
    one = Knows(stories_f32, {asked[2].name: asked[2].value})
    assert needle.answer(one, ids, questions, unheard) == tuple(row == 2 for row in range(8))
    forgot = needle.answer(Knows(stories_f32, {}), ids, questions, unheard)
    assert forgot == (False,) * 8
    found = needle.judge_needles([1000] * 8, Pairs(reference=knows, candidate=forgot))
    assert (found.verdict, found.figures[0].reference, found.figures[0].candidate) == ("fail", 100.0, 0.0)


def test_chance_fails_nobody_and_guessing_proves_nothing() -> None:
    few = Pairs(reference=(True,) * 24, candidate=(False,) * 7 + (True,) * 17)
    assert needle.judge_needles([1024] * 24, few).verdict == "pass"
    many = Pairs(reference=(True,) * 24, candidate=(False,) * 8 + (True,) * 16)
    assert needle.judge_needles([1024] * 24, many).verdict == "fail"
    guessed = Pairs(reference=(True,) * 7 + (False,) * 17, candidate=(False,) * 24)
    assert needle.judge_needles([1024] * 24, guessed).verdict == "skipped"
    assert needle.guessing(0, 24) == pytest.approx(1.0)
    assert needle.guessing(24, 24) == pytest.approx(0.2**24)


@pytest.mark.slow
def test_the_demo_finds_its_needles_and_loses_them_with_its_positions(demo_gguf: Path, tmp_path: Path) -> None:
    original = build_once(tmp_path, "demo", scheme="f32", context=1100)
    broken = load(changed(original.bundle, tmp_path / "broken", short_rotary(original.plan, 300)))
    both = subject(original.load(), broken)
    where, what = positions.probe_positions(both, unheard), needle.probe_needle(both, unheard)
    assert (where.verdict, what.verdict) == ("fail", "fail")
    assert what.figures[0].reference is not None and what.figures[0].reference > 70 > what.figures[0].candidate
