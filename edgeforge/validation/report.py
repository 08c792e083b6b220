"""What `validate` found, as one frozen value and as versioned JSON (report.schema.json)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeforge.errors import UnusableInput
from edgeforge.validation.findings import NOTHING, Findings
from edgeforge.validation.gate import GateResult, Verdict
from edgeforge.validation.reading import read_value

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkFigures:
    """The same averages over one chunk."""

    perplexity: float
    reference_perplexity: float
    mean_kl_divergence: float
    same_top_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How many scored tokens diverge by edges[i] .. edges[i + 1] nats; the outer bins also hold what lies beyond."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The original that the bundle was held against. `is_source`: the bundle was built from this very checkpoint."""

    name: str | None
    precision: str
    fingerprint: str
    is_source: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What was scored. `sha256` is of the concatenated UTF-8 text."""

    name: str
    sha256: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """Candidate against reference on the same tokens. Divergences are in nats, `same_top_token` is a fraction.

    `gate` judges the text and every task; `findings` is what else was asked for.
    """

    edgeforge_version: str
    manifest_sha256: str
    target: str
    reference: Reference
    text: Text
    protocol: str
    context: int
    scored_tokens: int
    perplexity: float
    perplexity_standard_error: float
    reference_perplexity: float
    reference_perplexity_standard_error: float
    perplexity_ratio: float
    perplexity_ratio_standard_error: float
    mean_kl_divergence: float
    mean_kl_divergence_standard_error: float
    median_kl_divergence: float
    p99_kl_divergence: float
    max_kl_divergence: float
    same_top_token: float
    same_top_token_standard_error: float
    kl_divergence_histogram: Histogram
    chunks: tuple[ChunkFigures, ...]
    gate: GateResult
    notes: tuple[str, ...]
    seconds: float
    findings: Findings = NOTHING

    @property
    def verdict(self) -> Verdict:
        """The gate's: pass, undecided (too few tokens to tell) or fail."""
        return self.gate.verdict


def report_to_json(report: ValidationReport) -> dict[str, object]:
    """A JSON object; `report_from_json` is its exact inverse."""
    return {"schema_version": SCHEMA_VERSION, **asdict(report), "verdict": report.verdict}


def report_from_json(document: dict[str, object]) -> ValidationReport:
    """Read a report back; the document must satisfy report.schema.json."""
    own = {"schema_version", "verdict"}
    return read_value(ValidationReport, {key: value for key, value in document.items() if key not in own})


def write_report(report: ValidationReport, bundle: Path) -> tuple[Path, Path]:
    """Write BUNDLE/reports/validation.json and validation.html; the bundle must be sealed again afterwards."""
    from edgeforge.validation.page import render_page  # the page imports this module

    folder = bundle / "reports"
    folder.mkdir(exist_ok=True)
    data, page = folder / "validation.json", folder / "validation.html"
    data.write_text(json.dumps(report_to_json(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    page.write_text(render_page(report), encoding="utf-8")
    return data, page


def read_report(bundle: Path) -> ValidationReport | None:
    """The bundle's last report, or None when it was never validated."""
    path = bundle / "reports" / "validation.json"
    if not path.is_file():
        return None
    try:
        return report_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UnusableInput(f"{path} is damaged: {error}", hint=f"edgeforge validate {bundle}") from None
