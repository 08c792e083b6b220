"""JUnit XML: a case for every check and probe, counted as dashboards count, and XML whatever a model answered."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from edgeforge.validation.junit import render_junit
from edgeforge.validation.report import ValidationReport
from edgeforge.validation.wording import judged

from .rich_report import HOSTILE, bare_report, rich_report

# What junit-10.xsd of Jenkins's xUnit plugin allows, where it matters here: attributes (! = required) and children.
ALLOWED = {
    "testsuites": ("name time tests failures errors", "testsuite"),
    "testsuite": (
        "name! tests! failures! errors! group time skipped timestamp hostname id package file log url",
        "testsuite properties testcase system-out system-err",
    ),
    "properties": ("", "property"),
    "property": ("name! value!", ""),
    "testcase": ("name! time classname group", "skipped error failure system-out system-err"),
    "failure": ("type message", ""),
    "skipped": ("type message", ""),
    "system-out": ("", ""),
}
VERDICTS = {"pass": "system-out", "fail": "failure", "undecided": "skipped", "skipped": "skipped"}


@pytest.fixture(scope="module")
def report() -> ValidationReport:
    return rich_report(loss=0.06, noise=0.5, chunks=3)


def parse(report: ValidationReport) -> ElementTree.Element:
    return ElementTree.fromstring(render_junit(report).encode())


def check(element: ElementTree.Element) -> None:
    attributes, children = (words.split() for words in ALLOWED[element.tag])
    assert set(element.attrib) <= {name.rstrip("!") for name in attributes}
    assert {name[:-1] for name in attributes if name.endswith("!")} <= set(element.attrib)
    if "time" in element.attrib:
        assert re.fullmatch(r"\d+(\.\d*)?", element.attrib["time"])
    for child in element:
        assert child.tag in children
        check(child)


def test_every_check_and_every_probe_is_a_case_with_its_verdict(report: ValidationReport) -> None:
    verdicts = {each.key: each.check.verdict for each in judged(report)}
    verdicts |= {probe.name: probe.verdict for probe in report.findings.probes}
    assert set(verdicts.values()) == set(VERDICTS)
    cases = parse(report).findall("testsuite/testcase")
    assert {case.get("name"): case[0].tag for case in cases} == {
        name: VERDICTS[verdict] for name, verdict in verdicts.items()
    }
    assert len(cases) == len(verdicts) == 2 + len(report.findings.tasks) + len(report.findings.probes)


def test_failures_and_skips_carry_their_sentence(report: ValidationReport) -> None:
    root = parse(report)
    sentences = {each.sentence for each in judged(report)} | {probe.summary for probe in report.findings.probes}
    told = root.findall("testsuite/testcase/failure") + root.findall("testsuite/testcase/skipped")
    assert told
    assert {each.get("message") for each in told} <= sentences


@pytest.mark.parametrize("make", [bare_report, rich_report])
def test_the_structure_is_jenkinss_and_counts_add_up(make) -> None:
    root = parse(make())
    check(root)
    suite = root.find("testsuite")
    assert int(suite.get("tests")) == len(suite.findall("testcase"))
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
    assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped"))
    assert all(root.get(name) == suite.get(name) for name in ("tests", "failures", "errors", "time"))


def test_properties_name_the_target_and_every_hash(report: ValidationReport) -> None:
    found = {each.get("name"): each.get("value") for each in parse(report).iter("property")}
    assert found["target"] == report.target
    assert found["manifest_sha256"] == report.manifest_sha256
    assert found["reference_fingerprint"] == report.reference.fingerprint
    for task in report.findings.tasks:
        assert found[f"{task.task}_subset_sha256"] == task.subset.sha256


def test_what_xml_forbids_is_replaced(report: ValidationReport) -> None:
    probe = replace(report.findings.probes[0], verdict="fail", summary=HOSTILE + "\ufffe")
    root = parse(replace(report, findings=replace(report.findings, probes=(probe,)), notes=(HOSTILE,)))
    message = next(root.iter("testsuite")).findall("testcase/failure")[-1].get("message")
    assert "<script>" in message and "مرحبا" in message
    assert message.count("\N{REPLACEMENT CHARACTER}") == 4  # escape, NUL, half a surrogate pair, U+FFFE
    assert "\N{REPLACEMENT CHARACTER}" in root.find("testsuite/system-out").text


def test_the_same_report_gives_the_same_bytes(report: ValidationReport) -> None:
    assert render_junit(report) == render_junit(report)
