"""JSON, repetition and languages: alike passes, what chance can do passes, damage fails."""

from pathlib import Path

import numpy as np
import pytest
from built import Build

from edgeforge.runtime import load
from edgeforge.validation.probes import languages
from edgeforge.validation.probes.common import Pairs
from edgeforge.validation.probes.json_answers import PROMPTS, has_json, judge_json, probe_json
from edgeforge.validation.probes.repetition import (
    judge_repetition,
    probe_repetition,
    repeated_share,
    sign_flip_test,
)
from edgeforge.validation.statistics import compare_logits, summarize

from .broken import Says, changed, noisy, subject, unheard


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ('{"a": 1}', True),
        ('Here you are:\n```json\n{"a": [1, {"b": null}]}\n```\nGood luck', True),
        ("[]", True),
        ('{"a": 1', False),
        ("{'a': 1}", False),
        ("no braces", False),
        ("", False),
        ('use {braces} like this: {"a": 1}', False),
        ("[" * 100_000, False),
    ],
)
def test_json_is_the_first_value_and_must_be_whole(text: str, whole: bool) -> None:
    assert has_json(text) is whole


def test_answers_cut_short_fail_and_a_few_do_not() -> None:
    whole, cut = Says(lambda _: '{"a": 1}'), Says(lambda _: '{"a": 1')
    assert probe_json(subject(whole, whole), unheard).verdict == "pass"
    found = probe_json(subject(whole, cut), unheard)
    assert (found.verdict, found.figures[0].reference, found.figures[0].candidate) == ("fail", 100.0, 0.0)
    assert probe_json(subject(cut, whole), unheard).verdict == "pass"
    often = Says(lambda prompt: '{"a": 1}' if PROMPTS.index(prompt) > 6 else "{")
    assert probe_json(subject(whole, often), unheard).verdict == "pass"  # 7 lost: p = 0.016
    assert judge_json(Pairs(reference=(True,) * 16, candidate=(False,) * 8 + (True,) * 8)).verdict == "fail"
    assert probe_json(subject(whole, Says(lambda _: "", context_length=64)), unheard).verdict == "skipped"


def test_an_answer_ends_with_its_value() -> None:
    heard = []

    def endless(prompt: str) -> str:
        heard.append(prompt)
        return '{"a": 1} and then ' + "x" * 1000

    assert probe_json(subject(Says(endless), Says(endless)), unheard).verdict == "pass"
    assert heard == [*PROMPTS, *PROMPTS]


def test_the_repeated_share_counts_runs_of_four() -> None:
    assert repeated_share(range(100)) == 0.0
    assert repeated_share([1, 2, 3, 4] * 2) == pytest.approx(1 / 5)
    assert repeated_share([7] * 128) == pytest.approx(124 / 125)
    assert repeated_share([1, 2, 3]) == 0.0


def test_the_sign_flip_test_is_exact() -> None:
    assert sign_flip_test([1.0] * 8) == pytest.approx(1 / 256)
    assert sign_flip_test([0.0] * 8) == 1.0
    assert sign_flip_test([3.0, 2.0, -1.0]) == pytest.approx(2 / 8)  # sums: 6, 4, 2, ...; two are at least 4
    random = np.random.default_rng(0)
    wrong = sum(sign_flip_test(random.standard_normal(8)) < 0.05 for _ in range(400))
    assert wrong <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_going_in_circles_fails_and_going_straight_does_not() -> None:
    straight = Says(lambda prompt: "".join(chr(97 + place) for place in range(500)))
    circles = Says(lambda _: "round and " * 50)
    assert probe_repetition(subject(straight, straight), unheard).verdict == "pass"
    found = probe_repetition(subject(straight, circles), unheard)
    assert found.verdict == "fail"
    assert found.figures[0].reference == 0.0 and found.figures[0].candidate > 80
    assert probe_repetition(subject(circles, straight), unheard).verdict == "pass"
    assert judge_repetition([0.2, 0.3] * 4, [0.3, 0.2] * 4).verdict == "pass"
    assert probe_repetition(subject(straight, Says(lambda _: "", context_length=100)), unheard).verdict == "skipped"


def test_languages_are_scored_alike_and_damage_fails(stories_f32: Build, tmp_path: Path) -> None:
    reference = stories_f32.load()
    same = languages.probe_languages(subject(reference, reference), unheard)
    assert same.verdict == "pass"
    assert [row.code for row in same.languages] == list(languages.LANGUAGES)
    assert all(row.perplexity_ratio == 1.0 and row.mean_kl_divergence < 1e-9 for row in same.languages)
    broken = load(changed(stories_f32.bundle, tmp_path / "b", noisy(stories_f32.plan, "layers.4.down", 3.0)))
    found = languages.probe_languages(subject(reference, broken), unheard)
    assert found.verdict == "fail"
    ids = reference.encode(languages.text_of("fr"))[:1024]
    values = [
        compare_logits(reference.score(part)[:-1], broken.score(part)[:-1], np.array(part[1:], np.int64))
        for part in (ids[:512], ids[512:])
    ]
    ratio = np.exp(np.concatenate([each.log_ratio for each in values]).mean())
    divergence = np.mean([summarize(each).mean_kl_divergence.value for each in values])
    french = next(row for row in found.languages if row.code == "fr")
    assert (french.tokens, french.name) == (1022, "French")
    assert french.perplexity_ratio == pytest.approx(ratio, rel=1e-6)
    assert french.mean_kl_divergence == pytest.approx(divergence, rel=1e-6)
