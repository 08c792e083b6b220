"""doctor: tells what is there and what is missing, with the command that cures it, and which targets run here."""

import json

import pytest
from click.testing import CliRunner

from edgeforge.cli import doctor as module
from edgeforge.cli import machine
from edgeforge.cli.doctor import doctor, obstacle_for, package_reports
from edgeforge.errors import MissingDependency
from edgeforge.hardware import load_target

ADA = machine.Gpu(name="RTX 4090", compute_capability="8.9", memory_bytes=24 << 30, driver="570")
CPU_ONLY = {"onnxruntime"}
GPU_TOO = {"onnxruntime-gpu"}


@pytest.mark.parametrize(
    ("target", "packages", "gpus", "obstacle"),
    [
        ("cpu", CPU_ONLY, (), None),
        ("cpu", GPU_TOO, (), None),
        ("cpu", set(), (), "edgeforge[cpu]"),
        ("rtx4090", GPU_TOO, (ADA,), None),
        ("rtx4090", GPU_TOO, (), "compute capability 8.9"),
        ("rtx4090", CPU_ONLY, (ADA,), "edgeforge[gpu]"),
        ("h100", GPU_TOO, (ADA,), "compute capability 9.0"),
        ("jetson-orin-nx-16gb", GPU_TOO, (ADA,), "jetson-orin-nx-16gb"),
    ],
)
def test_a_target_runs_where_its_hardware_and_its_package_are(
    target: str, packages: set[str], gpus: tuple[machine.Gpu, ...], obstacle: str | None
) -> None:
    found = obstacle_for(load_target(target).profile, packages, gpus)
    if obstacle is None:
        assert found is None
    else:
        assert found is not None
        assert obstacle in found


def test_json_carries_units_and_every_target() -> None:
    result = CliRunner().invoke(doctor, ["--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["memory"]["total_bytes"] > 0
    assert document["disk_free_bytes"] > 0
    assert {target["name"] for target in document["targets"]} >= {"cpu", "rtx4090", "h100", "jetson-orin-nx-16gb"}
    assert document["ok"] is True


def requirement(name: str, minimum: str) -> machine.Requirement:
    return machine.Requirement(name=name, minimum=minimum, extra=None)


def test_a_missing_or_old_requirement_is_exit_7_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = (requirement("click", "999"), requirement("no-such-package", "1"))
    monkeypatch.setattr(module.machine, "requirements_of", lambda package: wanted)
    result = CliRunner().invoke(doctor, [])
    assert isinstance(result.exception, MissingDependency)
    assert result.exception.message == "missing or too old: click, no-such-package"
    assert result.exception.hint == "python -m pip install --upgrade 'click'"
    assert "no-such-package" in result.stdout, "the report comes before the error"


def test_an_optional_package_that_is_missing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.machine, "installed_version", lambda package: None)
    monkeypatch.setattr(module.machine, "requirements_of", lambda package: ())
    reports = {report.name: report for report in package_reports()}
    assert reports["onnxruntime"].cure == "python -m pip install --upgrade 'edgeforge[cpu]'"
    assert not reports["onnxruntime"].required
    assert CliRunner().invoke(doctor, []).exit_code == 0
