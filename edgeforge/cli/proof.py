"""What `validate` says at its end: figures, notes, the gate check by check, tasks, probes, and where the page lies."""

from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge.cli.report import validation_fields
from edgeforge.cli.text import bytes_text, fields, table

if TYPE_CHECKING:
    from edgeforge.validation.findings import Findings, Metric
    from edgeforge.validation.gate import Check
    from edgeforge.validation.report import ValidationReport

PROBE_VERDICTS = {"pass": "pass", "fail": "FAIL", "skipped": "skipped"}


def render(report: "ValidationReport", bundle: Path) -> str:
    """The report for people."""
    from edgeforge.validation.wording import counted, probe_warning

    original = report.reference.name or "local checkpoint"
    spread = (
        f"median {report.median_kl_divergence:.4g}, 99 % below {report.p99_kl_divergence:.4g}, "
        f"largest {report.max_kl_divergence:.4g} nats"
    )
    figures = [("original", f"{original}, stored as {report.reference.precision}"), *validation_fields(report)]
    figures.insert(-2, ("KL spread", spread))
    figures.insert(
        -2, ("protocol", f"{report.protocol}, {counted(len(report.chunks), 'chunk')} of {report.context} tokens")
    )
    warning = probe_warning(report)
    if warning is not None:
        figures.append(("warning", f"{warning}; the gate does not count them"))
    figures += size_fields(report.findings)
    figures += [("note", note) for note in report.notes]
    parts = [fields(figures, indent=0), gate_table(report)]
    parts += [part(report.findings) for part in (task_table, probe_table, language_table) if part(report.findings)]
    parts.append(str(bundle / "reports" / "validation.html"))
    return "\n\n".join(parts)


def gate_table(report: "ValidationReport") -> str:
    rows = [
        (
            check.figure.replace("_", " ").replace("kl", "KL"),
            f"{check.value:.5f}",
            f"{check.limit:g}",
            f"{check.lower_bound:.5f} .. {check.upper_bound:.5f}",
            _verdict(check),
        )
        for check in report.gate.checks
    ]
    headers = ("gate", "measured", "limit", f"{report.gate.confidence:.0%} bounds", "verdict")
    return table(headers, rows, right=frozenset({1, 2, 3}))


def _verdict(check: "Check") -> str:
    if check.verdict != "undecided":
        return check.verdict
    return "too few" if check.items_needed is None else f"too few, {check.items_needed:,} would tell"


def task_table(findings: "Findings") -> str:
    """Every metric of every task: both models, what changed, and flips on the task's first line."""
    rows = []
    for task in findings.tasks:
        for place, metric in enumerate(task.metrics):
            first = place == 0
            rows.append(
                (
                    task.task if first else "",
                    f"{task.subset.items:,}" if first else "",
                    metric.name,
                    f"{metric.reference:.4f}",
                    f"{metric.candidate:.4f}",
                    _change(metric),
                    f"-{task.lost} +{task.gained}" if first and task.p_value is not None else "",
                    "" if not first or task.p_value is None else f"{task.p_value:.3f}",
                )
            )
    if not rows:
        return ""
    headers = ("task", "items", "metric", "original", "bundle", "change", "flips", "p")
    return table(headers, rows, right=frozenset({1, 3, 4, 5, 6, 7}))


def _change(metric: "Metric") -> str:
    low, high = metric.interval.low, metric.interval.high
    if metric.comparison == "ratio":
        return f"x{metric.change:.4f} ({low:.4f} .. {high:.4f})"
    return f"{metric.change:+.4f} ({low:+.4f} .. {high:+.4f})"


def probe_table(findings: "Findings") -> str:
    rows = [(probe.title, PROBE_VERDICTS[probe.verdict], probe.summary) for probe in findings.probes]
    return table(("probe", "verdict", "found"), rows) if rows else ""


def language_table(findings: "Findings") -> str:
    rows = [
        (
            language.name,
            f"{language.tokens:,}",
            f"{language.perplexity_ratio:.4f}",
            f"{language.mean_kl_divergence:.5f} ± {language.mean_kl_divergence_standard_error:.5f}",
        )
        for language in findings.languages
    ]
    if not rows:
        return ""
    return table(("language", "tokens", "perplexity ratio", "KL divergence"), rows, right=frozenset({1, 2, 3}))


def size_fields(findings: "Findings") -> list[tuple[str, str]]:
    """Bytes and speed beside the original's."""
    both = findings.size_and_speed
    if both is None:
        return []
    ours, theirs = both.candidate, both.reference
    return [
        (
            "weights",
            f"{bytes_text(ours.weight_bytes)}, original in {both.reference_precision} "
            f"{bytes_text(theirs.weight_bytes)}",
        ),
        (
            "speed",
            f"prefill {ours.prefill_tokens_per_s:,.0f}, decode {ours.decode_tokens_per_s:,.1f} tokens/s; original "
            f"{theirs.prefill_tokens_per_s:,.0f} and {theirs.decode_tokens_per_s:,.1f}",
        ),
    ]
