"""The report as JUnit XML, for dashboards of continuous integration: a test case for every check and every probe.

One suite a report. What fails is a failure with its sentence. What cannot be told, and a probe that was skipped, are
`skipped` with theirs: a dashboard then neither reports a proof that there is none of, nor stops a pipeline that the
exit code lets pass. There is no time stamp, so that the same report gives the same bytes.

Format: junit-10.xsd of Jenkins's xUnit plugin; GitLab and GitHub's reporters read the same.
"""

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from edgeforge.validation.findings import Probe
from edgeforge.validation.report import ValidationReport
from edgeforge.validation.wording import Judged, judged

SUITE = "edgeforge.validate"
# Everything but XML 1.0's production 2, Char.
FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: ValidationReport) -> str:
    """The XML document, with its declaration, in UTF-8 when encoded. Characters that XML forbids become U+FFFD."""
    suites = Element("testsuites", name=SUITE)
    name = _clean(f"{SUITE}.{report.target}")
    suite = SubElement(suites, "testsuite", name=name)
    properties = SubElement(suite, "properties")
    for key, value in _properties(report).items():
        SubElement(properties, "property", name=_clean(key), value=_clean(value))
    for each in judged(report):
        _add_check(suite, f"{name}.{each.group}", each)
    for probe in report.findings.probes:
        _add_probe(suite, f"{name}.probe", probe)
    remarks = "\n".join(report.notes)
    if remarks:
        SubElement(suite, "system-out").text = _clean(remarks)
    _count(suites, suite, report.seconds)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _properties(report: ValidationReport) -> dict[str, str]:
    """What was held against what, by hash."""
    own = {
        "target": report.target,
        "verdict": report.verdict,
        "edgeforge_version": report.edgeforge_version,
        "manifest_sha256": report.manifest_sha256,
        "reference": report.reference.name or "local checkpoint",
        "reference_fingerprint": report.reference.fingerprint,
        "text_sha256": report.text.sha256,
        "confidence": f"{report.gate.confidence:g}",
    }
    subsets = {f"{task.task}_subset_sha256": task.subset.sha256 for task in report.findings.tasks}
    command = {} if report.findings.command is None else {"command": report.findings.command}
    return own | subsets | command


def _add_check(suite: Element, classname: str, each: Judged) -> None:
    case = SubElement(suite, "testcase", classname=classname, name=_clean(each.key), time="0")
    sentence = _clean(each.sentence)
    if each.check.verdict == "fail":
        SubElement(case, "failure", message=sentence, type="gate").text = sentence
    elif each.check.verdict == "undecided":
        SubElement(case, "skipped", message=sentence)
    else:
        SubElement(case, "system-out").text = sentence


def _add_probe(suite: Element, classname: str, probe: Probe) -> None:
    case = SubElement(suite, "testcase", classname=classname, name=_clean(probe.name), time="0")
    sentence = _clean(probe.summary)
    if probe.verdict == "fail":
        SubElement(case, "failure", message=sentence, type="probe").text = sentence
    elif probe.verdict == "skipped":
        SubElement(case, "skipped", message=sentence)
    else:
        SubElement(case, "system-out").text = sentence


def _count(suites: Element, suite: Element, seconds: float) -> None:
    counts = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": 0,
    }
    for name, count in counts.items():
        suites.set(name, str(count))
        suite.set(name, str(count))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    for element in (suites, suite):
        element.set("time", f"{seconds:.3f}")


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
