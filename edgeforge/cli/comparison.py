"""What `validate --compare` says: two bundles side by side, as tables."""

from typing import TYPE_CHECKING

from edgeforge.cli.text import fields, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeforge.validation.comparison import ComparisonDocument
    from edgeforge.validation.comparison_wording import Row


def comparison_text(document: "ComparisonDocument") -> str:
    """The comparison for people: its sentence, then text, tasks, gates, probes, languages, size and speed."""
    from edgeforge.validation import comparison_wording as told

    level = f"{document.confidence:.0%} interval"
    sides = [(letter, f"{side.name}, target {side.target}") for letter, side in (("A", document.a), ("B", document.b))]
    notes = [("note", note) for note in document.notes]
    parts = [told.headline(document), fields([*sides, *notes], indent=0)]
    for title, rows in (("text", told.figure_rows(document)), ("task", told.task_rows(document))):
        if rows:
            parts.append(_figures(title, rows, level))
    parts += [_verdicts(document), *_values(document)]
    costs = told.cost_rows(document)
    if costs:
        cells = [(row.name, row.a, row.b, row.change) for row in costs]
        parts.append(table(("size and speed", "A", "B", "B against A"), cells, right=frozenset({1, 2, 3})))
    return "\n\n".join(parts)


def _figures(title: str, rows: "Sequence[Row]", level: str) -> str:
    cells = [(row.name, row.a, row.b, row.change, row.interval, row.better, row.remark) for row in rows]
    headers = (title, "A", "B", "change", level, "", "")
    return table(headers, cells, right=frozenset({1, 2, 3, 4}))


def _verdicts(document: "ComparisonDocument") -> str:
    from edgeforge.validation.wording import BRIEF_VERDICTS

    def said(verdict: str | None) -> str:
        return "not asked" if verdict is None else BRIEF_VERDICTS.get(verdict, verdict)

    rows = [("all of the gate", said(document.a.verdict), said(document.b.verdict))]
    rows += [(check.name, said(check.a), said(check.b)) for check in document.checks]
    rows += [(f"probe: {probe.title}", said(probe.a), said(probe.b)) for probe in document.probes]
    return table(("verdict", "A", "B"), rows)


def _values(document: "ComparisonDocument") -> list[str]:
    rows = [(row.name, f"{row.a:.5f}", f"{row.b:.5f}") for row in document.languages]
    return [table(("mean KL divergence", "A", "B"), rows, right=frozenset({1, 2}))] if rows else []
