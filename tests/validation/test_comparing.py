"""Two bundles side by side: paired on the same ground, silent (and saying so) where the ground is not the same."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from edgeforge.cli.comparison import comparison_text
from edgeforge.errors import UnusableInput
from edgeforge.validation import paired
from edgeforge.validation.comparing import compare_reports, comparison_to_json, render_comparison_page
from edgeforge.validation.comparison import ComparisonDocument
from edgeforge.validation.comparison_wording import headline
from edgeforge.validation.findings import NOTHING
from edgeforge.validation.report import ValidationReport

from .rich_report import bare_report, rich_report

NAMES = ("artifacts/<better>", "artifacts/worse")


@pytest.fixture(scope="module")
def a() -> ValidationReport:
    return rich_report(seed=1, loss=0.005, noise=0.2, chunks=6)


@pytest.fixture(scope="module")
def b() -> ValidationReport:
    return rich_report(seed=2, loss=0.08, noise=0.35, chunks=6)


@pytest.fixture(scope="module")
def document(a: ValidationReport, b: ValidationReport) -> ComparisonDocument:
    return compare_reports(a, b, NAMES)


def test_every_task_is_paired_item_by_item(
    a: ValidationReport, b: ValidationReport, document: ComparisonDocument
) -> None:
    assert [pair.task for pair in document.tasks] == [task.task for task in a.findings.tasks]
    for pair, x, y in zip(document.tasks, a.findings.tasks, b.findings.tasks, strict=True):
        first, second = np.array(x.candidate_scores), np.array(y.candidate_scores)
        if x.metrics[0].comparison == "difference":
            change, interval = paired.difference(first, second, confidence=0.95)
            assert pair.figure.change == pytest.approx(change)
            assert pair.figure.interval == interval
            assert (pair.lost, pair.gained) == ((first > second).sum(), (second > first).sum())
            assert pair.p_value == paired.mcnemar(pair.lost, pair.gained)


def test_the_other_way_round_every_change_turns_its_sign(
    a: ValidationReport, b: ValidationReport, document: ComparisonDocument
) -> None:
    back = compare_reports(b, a, NAMES[::-1])
    for one, other in zip(
        [*document.figures, *(task.figure for task in document.tasks)],
        [*back.figures, *(task.figure for task in back.tasks)],
        strict=True,
    ):
        undone = 1 / other.change if one.comparison == "ratio" else -other.change
        assert one.change == pytest.approx(undone)
        assert other.better == {"a": "b", "b": "a", None: None}[one.better]


def test_a_bundle_beside_itself_changes_nothing_and_is_better_at_nothing(a: ValidationReport) -> None:
    same = compare_reports(a, a, ("one", "one"))
    assert same.a.name != same.b.name
    for pair in (*same.figures, *(task.figure for task in same.tasks)):
        assert pair.change == (1.0 if pair.comparison == "ratio" else 0.0)
        assert pair.better is None
    assert all(task.p_value in (1.0, None) for task in same.tasks)
    assert "cannot be told apart" in headline(same)


def test_the_noisier_bundle_is_told_to_be_farther_from_the_original(document: ComparisonDocument) -> None:
    figures = {pair.name: pair for pair in document.figures}
    for name in ("perplexity", "mean_kl_divergence", "same_top_token"):
        pair = figures[name]
        assert pair.better == "a"
        assert pair.interval.low <= pair.change <= pair.interval.high
    assert figures["p99_kl_divergence"].interval is None
    assert headline(document).startswith(f"On the text, {NAMES[0]} is closer to the original than {NAMES[1]}")


def test_the_ratio_of_perplexities_is_paired_item_by_item(
    a: ValidationReport, b: ValidationReport, document: ComparisonDocument
) -> None:
    """Long items count for more: the whole ratio is that of sums over all words."""
    x, y, found = a.findings.tasks[-1], b.findings.tasks[-1], document.tasks[-1].figure
    words = np.array(x.item_lengths)
    assert words.std() > 0
    first, second = (words * np.array(each.candidate_scores) for each in (x, y))
    change, interval = paired.ratio(first, second, words, confidence=0.95)
    assert found.comparison == "ratio"
    assert found.change == pytest.approx(change)
    assert found.interval == interval
    assert interval.low < change < interval.high


def test_a_ratio_of_perplexities_without_lengths_has_no_interval(a: ValidationReport, b: ValidationReport) -> None:
    """Reports of earlier versions lack them."""

    def older(report: ValidationReport) -> ValidationReport:
        tasks = (replace(report.findings.tasks[-1], item_lengths=()),)
        return replace(report, findings=replace(report.findings, tasks=tasks))

    pair = compare_reports(older(a), older(b), NAMES).tasks[0].figure
    assert pair.interval is None and pair.better is None


def test_an_interval_over_chunks_holds_as_often_as_it_says() -> None:
    """Of 120 pairs that do not differ, 6 are expected to seem to at 95 %."""
    from edgeforge.validation.comparing import _over_chunks

    random = np.random.default_rng(5)
    intervals = [_over_chunks(random.normal(0.0, 1.0, 5), 0.95) for _ in range(120)]
    assert sum(each.low > 0 or each.high < 0 for each in intervals) <= 14
    assert _over_chunks(np.array([1.0]), 0.95) is None


def test_what_stands_on_other_ground_is_left_out_with_a_note(a: ValidationReport, b: ValidationReport) -> None:
    moved = replace(b, text=replace(b.text, sha256="00" * 32, name="other"))
    without_text = compare_reports(a, moved, NAMES)
    assert not without_text.figures and without_text.tasks
    assert "other" in without_text.notes[0]
    mmlu, *rest = b.findings.tasks
    drawn = replace(mmlu, subset=replace(mmlu.subset, sha256="11" * 32))
    fewer = replace(b, findings=replace(b.findings, tasks=(drawn, *rest[1:])))
    left = compare_reports(a, fewer, NAMES)
    assert {pair.task for pair in left.tasks} == {task.task for task in rest[1:]}
    assert any("MMLU" in note and "items" in note for note in left.notes)
    assert any("GSM8K" in note and "only A" in note for note in left.notes)
    shots = replace(b, findings=replace(b.findings, tasks=(replace(mmlu, num_fewshot=0), *rest)))
    assert any("examples" in note for note in compare_reports(a, shots, NAMES).notes)


def test_nothing_in_common_is_unusable(a: ValidationReport, b: ValidationReport) -> None:
    bare = replace(b, findings=NOTHING, reference=replace(b.reference, fingerprint="sha256:00"))
    with pytest.raises(UnusableInput, match="different checkpoints"):
        compare_reports(a, bare, NAMES)
    chunks = replace(b, findings=NOTHING, protocol="windows")
    with pytest.raises(UnusableInput, match="other tokens"):
        compare_reports(a, chunks, NAMES)


def test_checks_and_probes_of_one_bundle_alone_are_not_asked_of_the_other(a: ValidationReport) -> None:
    bare = bare_report(seed=3, chunks=6)
    lone = compare_reports(a, bare, NAMES)
    assert len(lone.checks) == 2 + len(a.findings.tasks)
    assert all(check.b is None for check in lone.checks[2:])
    assert all(probe.b is None for probe in lone.probes)
    assert not lone.costs and not lone.languages
    assert "not asked" in comparison_text(lone) and "not asked" in render_comparison_page(lone)


def test_json_holds_everything(document: ComparisonDocument) -> None:
    found = json.loads(json.dumps(comparison_to_json(document), allow_nan=False))
    assert found["schema_version"] == 1
    assert found["a"]["name"] == NAMES[0]
    assert [task["figure"]["change"] for task in found["tasks"]] == [task.figure.change for task in document.tasks]


class Balanced(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.pointed: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert not any(name == "src" for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)
        self.ids += [str(value) for name, value in attrs if name == "id"]
        self.pointed += [part for name, value in attrs if name == "aria-labelledby" for part in str(value).split()]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "rect", "circle")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_shows_every_task_of_both(document: ComparisonDocument) -> None:
    page = render_comparison_page(document)
    found = Balanced(page)
    assert len(found.ids) == len(set(found.ids)) and set(found.pointed) <= set(found.ids)
    assert "artifacts/&lt;better&gt;" in page and "<better>" not in page
    assert render_comparison_page(document) == page
    for task in document.tasks:
        assert task.subset_sha256 in page
        if task.figure.comparison == "difference":
            assert f"<td>{100 * task.figure.a:.1f}\N{NO-BREAK SPACE}%</td>" in page


def test_the_text_has_a_row_for_every_figure_and_task(document: ComparisonDocument) -> None:
    lines = comparison_text(document).splitlines()
    assert lines[0] == headline(document)
    for word in ("Perplexity", "Same top token", "MMLU", "WikiText-2", "Weights", "French", "probe: Repetition"):
        assert any(line.startswith(word) for line in lines), word
