"""The report as one self-contained HTML page: no script, no network, light and dark, readable on a phone."""

from edgeforge.validation import wording
from edgeforge.validation.page import charts
from edgeforge.validation.page.comparison import render_comparison_page
from edgeforge.validation.page.environment import environment
from edgeforge.validation.page.tasks import forests
from edgeforge.validation.report import ValidationReport

__all__ = ["render_comparison_page", "render_page"]

PROTOCOLS = {
    "llama.cpp": "the second half of each scored, as llama.cpp's perplexity does",
    "windows": "every token after the first scored",
}


def render_page(report: ValidationReport) -> str:
    """The page; the same report gives the same bytes."""
    found = report.findings
    return (
        environment()
        .get_template("validation.html.jinja")
        .render(
            report=report,
            found=found,
            checks=wording.judged(report),
            sentence=wording.verdict_sentence(report),
            warning=wording.probe_warning(report),
            histogram=charts.histogram(report.kl_divergence_histogram),
            forests=forests(found.tasks),
            positions=charts.positions(found.positions) if found.positions else None,
            layers=charts.layers(found.layers) if found.layers else None,
            languages=charts.languages(found.languages) if found.languages else None,
            protocols=PROTOCOLS,
            sections=sections(report),
        )
    )


def sections(report: ValidationReport) -> tuple[tuple[str, str], ...]:
    """The anchors and titles of what the page holds, in its order."""
    found = report.findings
    every = (
        ("gate", "The gate", True),
        ("tasks", "Tasks", bool(found.tasks)),
        ("divergence", "Divergence", True),
        ("probes", "Probes", bool(found.probes)),
        ("flips", "Answers that changed", any(task.flips for task in found.tasks)),
        ("cost", "Size and speed", found.size_and_speed is not None),
        ("chunks", "Chunk by chunk", True),
        ("again", "What was compared", True),
    )
    return tuple((anchor, title) for anchor, title, there in every if there)
