"""`edgeforge doctor`: what is installed, what this machine is, which targets it can run."""

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeforge.cli import machine
from edgeforge.cli.options import json_option

if TYPE_CHECKING:
    from edgeforge.hardware import HardwareProfile

# Optional packages: what each is good for, and how to get it.
OPTIONAL = {
    "onnxruntime": ("running and validating on a CPU", "edgeforge[cpu]"),
    "onnxruntime-gpu": ("running and validating on an NVIDIA GPU", "edgeforge[gpu]"),
    "optimum-onnx": ("build --exporter optimum", "edgeforge[optimum]"),
    "onnxruntime-genai": ("running a bundle from C, C++, C#, Java", "onnxruntime-genai"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageReport:
    name: str
    version: str | None
    minimum: str | None
    required: bool
    use: str
    cure: str | None  # a pip command, None when nothing is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetReport:
    name: str
    runs: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    python: str
    platform: str
    packages: tuple[PackageReport, ...]
    cpu: machine.Cpu
    memory: machine.Memory
    disk_free_bytes: int
    gpus: tuple[machine.Gpu, ...]
    targets: tuple[TargetReport, ...]

    @property
    def missing(self) -> tuple[PackageReport, ...]:
        return tuple(package for package in self.packages if package.required and package.cure)


def diagnose() -> Diagnosis:
    """Look at this machine; takes no longer than nvidia-smi does."""
    packages = package_reports()
    gpus = machine.gpus()
    return Diagnosis(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=packages,
        cpu=machine.cpu(),
        memory=machine.memory(),
        disk_free_bytes=machine.disk_free_bytes(Path.cwd()),
        gpus=gpus,
        targets=_target_reports(packages, gpus),
    )


def package_reports() -> tuple[PackageReport, ...]:
    """Base requirements by EdgeForge's own metadata, then the optional ones that a user may want."""
    wanted = machine.requirements_of("edgeforge")
    minimum = {requirement.name: requirement.minimum for requirement in wanted}
    base = [requirement.name for requirement in wanted if requirement.extra is None]
    reports = [_package(name, minimum.get(name), required=True, use="", source=name) for name in base]
    for name, (use, source) in OPTIONAL.items():
        reports.append(_package(name, minimum.get(name), required=False, use=use, source=source))
    return tuple(reports)


def _package(name: str, minimum: str | None, *, required: bool, use: str, source: str) -> PackageReport:
    version = machine.installed_version(name)
    fine = version is not None and machine.at_least(version, minimum)
    cure = None if fine else f"python -m pip install --upgrade '{source}'"
    return PackageReport(name=name, version=version, minimum=minimum, required=required, use=use, cure=cure)


def _target_reports(packages: tuple[PackageReport, ...], gpus: tuple[machine.Gpu, ...]) -> tuple[TargetReport, ...]:
    from edgeforge.hardware import available_targets, load_target

    usable = {package.name for package in packages if package.cure is None}
    reports = []
    for name in available_targets():
        obstacle = obstacle_for(load_target(name).profile, usable, gpus)
        reports.append(TargetReport(name=name, runs=obstacle is None, reason=obstacle or "runs here"))
    return tuple(reports)


def obstacle_for(profile: "HardwareProfile", usable: set[str], gpus: tuple[machine.Gpu, ...]) -> str | None:
    """Why a bundle for `profile` does not run on this machine, or None when it does."""
    if profile.kind == "cpu":
        if usable.isdisjoint({"onnxruntime", "onnxruntime-gpu"}):
            return "needs onnxruntime: python -m pip install 'edgeforge[cpu]'"
        return None
    if profile.kind == "soc":
        if machine.tegra_model() is None:
            return f"needs a {profile.name}"
    elif all(gpu.compute_capability != profile.compute_capability for gpu in gpus):
        return f"needs a GPU of compute capability {profile.compute_capability}"
    if "onnxruntime-gpu" not in usable:
        return "needs onnxruntime-gpu: python -m pip install 'edgeforge[gpu]'"
    return None


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check what this machine can build and run.

    Looks at Python, the packages, the processor, memory, disk and GPUs, and says for each target whether a bundle built
    for it runs here. Exit code 7 when a package that EdgeForge itself needs is missing or too old.

    \b
    Examples:
      edgeforge doctor
      edgeforge doctor --json
    """
    from edgeforge.cli.console import emit_json
    from edgeforge.errors import MissingDependency

    found = diagnose()
    if as_json:
        emit_json({**asdict(found), "ok": not found.missing})
    else:
        click.echo(_render(found))
    if found.missing:
        names = ", ".join(package.name for package in found.missing)
        raise MissingDependency(f"missing or too old: {names}", hint=found.missing[0].cure)


def _render(found: Diagnosis) -> str:
    from edgeforge.cli.text import bytes_text, fields, table

    cpu, memory = found.cpu, found.memory
    pairs = [
        ("Python", f"{found.python} on {found.platform}"),
        ("CPU", f"{cpu.name}, {cpu.usable_threads} threads usable"),
        ("", " ".join(cpu.features) or "no int8 instructions known to EdgeForge"),
        ("Memory", f"{bytes_text(memory.total_bytes)}, {bytes_text(memory.available_bytes)} available"),
        ("Disk", f"{bytes_text(found.disk_free_bytes)} free in this folder"),
    ]
    for gpu in found.gpus:
        size = f", {bytes_text(gpu.memory_bytes)}" if gpu.memory_bytes else ""
        pairs.append(("GPU", f"{gpu.name}{size}, compute capability {gpu.compute_capability}, driver {gpu.driver}"))
    if not found.gpus:
        pairs.append(("GPU", "none found by nvidia-smi"))
    packages = [
        (package.name, package.version or "not installed", package.minimum or "", _note_on(package))
        for package in found.packages
    ]
    targets = [(target.name, "yes" if target.runs else "no", target.reason) for target in found.targets]
    return "\n\n".join(
        [
            fields(pairs, indent=0),
            table(("Package", "Version", "At least", "Note"), packages),
            table(("Target", "Runs", "Note"), targets),
        ]
    )


def _note_on(package: PackageReport) -> str:
    return "; ".join(part for part in (package.use, package.cure) if part)
