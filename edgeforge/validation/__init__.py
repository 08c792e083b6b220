"""Does a bundle still answer like the original? Same tokens, both models, statistics, a gate and a report."""

from edgeforge.validation.data import default_texts, load_texts
from edgeforge.validation.gate import Check, GateResult, Limits, Verdict
from edgeforge.validation.measure import validate
from edgeforge.validation.report import (
    ValidationReport,
    read_report,
    report_from_json,
    report_to_json,
    write_report,
)

__all__ = [
    "Check",
    "GateResult",
    "Limits",
    "ValidationReport",
    "Verdict",
    "default_texts",
    "load_texts",
    "read_report",
    "report_from_json",
    "report_to_json",
    "validate",
    "write_report",
]
