"""The report survives the journey to disk and back, keeps its schema, and is told in a terminal."""

import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from edgeforge.cli.proof import render
from edgeforge.hardware import Gate
from edgeforge.validation.gate import judge
from edgeforge.validation.measure import make_report
from edgeforge.validation.protocol import make_chunks
from edgeforge.validation.report import (
    Reference,
    Text,
    ValidationReport,
    read_report,
    report_from_json,
    report_to_json,
    write_report,
)
from edgeforge.validation.statistics import compare_logits

from .rich_report import rich_report


@pytest.fixture(scope="module")
def report() -> ValidationReport:
    rng = np.random.default_rng(1)
    chunks = make_chunks(range(1600), protocol="llama.cpp", context=512, bos_token_id=None)
    logits = (4 * rng.standard_normal((3 * 255, 1600))).astype(np.float32)
    disturbed = (logits + 0.2 * rng.standard_normal(logits.shape)).astype(np.float32)
    values = compare_logits(logits, disturbed, np.concatenate([chunks.targets(chunk) for chunk in range(3)]))
    limits = Gate(max_mean_kl_divergence=0.1, max_perplexity_ratio=1.01, confidence=0.95)
    return make_report(
        values,
        chunks,
        gate=judge(values, 255, limits),
        target="cpu",
        manifest_sha256="ab" * 32,
        reference=Reference(name="org/<model>", precision="Q4_1", fingerprint="sha256:cd", is_source=False),
        text=Text(name="wiki & more", sha256="ef" * 32, tokens=1600),
        seconds=12.3456,
    )


def test_json_keeps_the_schema_and_comes_back_equal(report: ValidationReport) -> None:
    schema = json.loads((resources.files("edgeforge.validation") / "report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(json.dumps(report_to_json(report), allow_nan=False))
    jsonschema.validate(document, schema)
    assert report_from_json(document) == report
    assert set(document) == set(schema["required"]) == set(schema["properties"])


def test_the_schema_refuses_what_is_no_report(report: ValidationReport) -> None:
    schema = json.loads((resources.files("edgeforge.validation") / "report.schema.json").read_text())
    document = json.loads(json.dumps(report_to_json(report)))
    for change in ({"verdict": "maybe"}, {"same_top_token": 1.2}, {"schema_version": 1}, {"extra": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document | change, schema)


def test_both_files_are_written_and_read_back(report: ValidationReport, tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    data, page = write_report(report, tmp_path)
    assert (data, page) == (tmp_path / "reports/validation.json", tmp_path / "reports/validation.html")
    assert read_report(tmp_path) == report
    first = page.read_bytes()
    write_report(report, tmp_path)
    assert page.read_bytes() == first


def test_a_failed_probe_is_told_beside_the_gate_and_does_not_move_it() -> None:
    report = rich_report()
    assert {"fail", "pass"} <= {probe.verdict for probe in report.findings.probes}
    failed = [probe.title for probe in report.findings.probes if probe.verdict == "fail"]
    told = render(report, Path("bundle"))
    assert re.search(
        rf"^warning +{len(failed)} of \d+ probes failed: {', '.join(failed)}; the gate", told, re.MULTILINE
    )
    passed = tuple(replace(probe, verdict="pass") for probe in report.findings.probes)
    fine = replace(report, findings=replace(report.findings, probes=passed))
    assert "warning" not in render(fine, Path("bundle"))
    assert fine.verdict == report.verdict
