"""`edgeforge doctor`: what is installed, what this machine is, which targets it can run and build."""

import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from edgeforge.cli import machine
from edgeforge.cli.obstacles import Here, build_obstacle_for, obstacle_for
from edgeforge.cli.options import json_option
from edgeforge.runtime.choice import PROGRAMS
from edgeforge.runtime.gpu import Gpu, cuda_version, gpus

# Optional packages: what each is good for, and how to get it.
OPTIONAL = {
    "onnxruntime": ("running and validating on a CPU", "edgeforge[cpu]"),
    "onnxruntime-gpu": ("running and validating on an NVIDIA GPU", "edgeforge[gpu]"),
    "optimum-onnx": ("build --exporter optimum", "edgeforge[optimum]"),
    "onnxruntime-genai": ("running a bundle from C, C++, C#, Java", "onnxruntime-genai"),
    "tensorrt-llm": ("running FP8, NVFP4 and INT4 bundles on NVIDIA GPUs", "tensorrt-llm"),
    "vllm": ("running FP8, NVFP4 and compressed-tensors bundles", "vllm"),
    "tensorrt-edgellm": ("exporting bundles for Jetson and Thor", "tensorrt-edgellm"),
}
# Programs that only some targets need: the package that each comes from, and what it is good for.
TOOLS = {
    "trtllm-build": ("tensorrt-llm", "building engines, --backend trtllm-engine (up to TensorRT-LLM 1.2.1)"),
    "llm_build": ("tensorrt-edgellm", "building Edge-LLM engines on a Jetson or Thor"),
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
    """`runs`: a bundle for it answers here. `builds`: it is built to the end here; `note` where it is not."""

    name: str
    engine: str
    runs: bool
    reason: str
    builds: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    python: str
    platform: str
    packages: tuple[PackageReport, ...]
    cpu: machine.Cpu
    memory: machine.Memory
    disk_free_bytes: int
    gpus: tuple[Gpu, ...]
    cuda_version: str | None  # the newest that the driver runs
    tools: tuple[machine.Tool, ...]
    targets: tuple[TargetReport, ...]

    @property
    def missing(self) -> tuple[PackageReport, ...]:
        return tuple(package for package in self.packages if package.required and package.cure)


def diagnose() -> Diagnosis:
    """Look at this machine; takes no longer than nvidia-smi does."""
    packages = package_reports()
    found, memory = gpus(), machine.memory()
    tools = tuple(tool for name, (package, _) in TOOLS.items() if (tool := machine.tool(name, package)) is not None)
    here = Here(
        packages={report.name: report.version for report in packages if report.version and report.cure is None},
        tools={tool.name: tool for tool in tools},
        gpus=found,
        processor=platform.machine(),
        board=machine.tegra_model(),
        memory_bytes=memory.total_bytes,
    )
    return Diagnosis(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=packages,
        cpu=machine.cpu(),
        memory=memory,
        disk_free_bytes=machine.disk_free_bytes(Path.cwd()),
        gpus=found,
        cuda_version=cuda_version() if found else None,
        tools=tools,
        targets=_target_reports(here),
    )


def package_reports() -> tuple[PackageReport, ...]:
    """Base requirements by EdgeForge's own metadata, then the optional ones that a user may want."""
    wanted = machine.requirements_of("edgeforge")
    minimum = {facts.package: facts.least for facts in PROGRAMS.values()}
    minimum |= {requirement.name: requirement.minimum for requirement in wanted if requirement.minimum}
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


def _target_reports(here: Here) -> tuple[TargetReport, ...]:
    from edgeforge.hardware import available_targets, load_target

    reports = []
    for target in map(load_target, available_targets()):
        obstacle, unbuilt = obstacle_for(target, here), build_obstacle_for(target, here)
        report = TargetReport(
            name=target.name,
            engine=target.engine,
            runs=obstacle is None,
            reason=obstacle or "runs here",
            builds=unbuilt is None,
            note=unbuilt or "",
        )
        reports.append(report)
    return tuple(reports)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check what this machine can build and run.

    Looks at Python, the packages, the processor, memory, disk, GPUs and engines, and says for each target whether a
    bundle for it runs here and can be built here. Exit code 7 when a package that EdgeForge itself needs is missing or
    too old.

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
        capability = f"compute capability {gpu.compute_capability} (sm{gpu.compute_capability.replace('.', '')})"
        pairs.append(("GPU", f"{gpu.name}{size}, {capability}"))
    if found.gpus:
        cuda = f", runs CUDA up to {found.cuda_version}" if found.cuda_version else ""
        pairs.append(("Driver", f"{found.gpus[0].driver}{cuda}"))
    else:
        pairs.append(("GPU", "none found by nvidia-smi"))
    packages = [
        (package.name, package.version or "not installed", package.minimum or "", _note_on(package))
        for package in found.packages
    ]
    there = {tool.name: tool for tool in found.tools}
    tools = [(name, _place_of(there.get(name)), use) for name, (_, use) in TOOLS.items()]
    targets = [
        (target.name, target.engine, _yes(target.runs), _yes(target.builds), _joined(target.reason, target.note))
        for target in found.targets
    ]
    return "\n\n".join(
        [
            fields(pairs, indent=0),
            table(("Package", "Version", "At least", "Note"), packages),
            table(("Program", "Found", "Use"), tools),
            table(("Target", "Engine", "Runs", "Builds", "Note"), targets),
        ]
    )


def _note_on(package: PackageReport) -> str:
    return _joined(package.use, package.cure or "")


def _place_of(tool: machine.Tool | None) -> str:
    if tool is None:
        return "not on the PATH"
    return tool.path if tool.version is None else f"{tool.version} in {tool.path}"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
