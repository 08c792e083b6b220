"""doctor: tells what is there and what is missing, with the command that cures it, and which targets run here."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeforge.cli import doctor as module
from edgeforge.cli import machine
from edgeforge.cli.doctor import doctor, package_reports
from edgeforge.errors import MissingDependency


def test_json_carries_units_and_every_target() -> None:
    result = CliRunner().invoke(doctor, ["--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["memory"]["total_bytes"] > 0
    assert document["disk_free_bytes"] > 0
    assert {target["name"] for target in document["targets"]} >= {"cpu", "rtx4090", "h100", "jetson-orin-nx-16gb"}
    assert document["ok"] is True
    cpu = next(target for target in document["targets"] if target["name"] == "cpu")
    assert cpu == {
        "name": "cpu",
        "engine": "onnxruntime",
        "runs": True,
        "reason": "runs here",
        "builds": True,
        "note": "",
    }
    assert all(target["builds"] for target in document["targets"]), "no target of the library is an engine file"
    assert set(document) >= {"cuda_version", "tools", "gpus"}


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


def test_a_gpu_machine_is_told_with_its_sm_driver_cuda_and_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        """#!/bin/sh
case "$1" in
  --query-gpu*) echo 'NVIDIA H100 80GB HBM3, 9.0, 81559, 580.82.07' ;;
  *) echo '| NVIDIA-SMI 580.82.07   Driver Version: 580.82.07   CUDA Version: 13.0     |' ;;
esac
"""
    )
    smi.chmod(0o755)
    build = tmp_path / "trtllm-build"
    build.write_text("#!/bin/sh\nexit 1\n")
    build.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    versions = {"tensorrt-llm": "1.2.1", "vllm": "0.1.0"}
    known = module.machine.installed_version
    monkeypatch.setattr(module.machine, "installed_version", lambda name: versions.get(name) or known(name))
    document = json.loads(CliRunner().invoke(doctor, ["--json"]).stdout)
    assert document["gpus"][0]["compute_capability"] == "9.0"
    assert document["cuda_version"] == "13.0"
    assert document["tools"] == [{"name": "trtllm-build", "path": str(build), "version": None}]
    runs = {target["name"] for target in document["targets"] if target["runs"]}
    assert {"h100", "cpu"} <= runs
    assert runs.isdisjoint({"h100x2", "h200", "b200", "rtx4090", "jetson-thor"})
    text = CliRunner().invoke(doctor, []).stdout
    assert "NVIDIA H100 80GB HBM3, 85.5 GB, compute capability 9.0 (sm90)" in text
    assert "580.82.07, runs CUDA up to 13.0" in text
    assert "python -m pip install --upgrade 'vllm'" in text, "0.1.0 is too old"
