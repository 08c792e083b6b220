"""Which of several bundles of one model is for this machine, and why the others are not.

The rules are those by which a bundle is opened (`choice`, `requirements`), asked of every bundle before any is opened:
packages and their versions, the engine, the GPU's kind, number and driver. Two are added, since here there is a choice:
the processor that a bundle was built for, and the memory that its plan asks for. A bundle for another GPU than this one
may still run, so that it comes second.
"""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .choice import choose, installed_version
from .errors import BundleError, MissingRequirement
from .gpu import Gpu, gpus, visible
from .manifest import MANIFEST_NAME, Manifest, read_manifest
from .requirements import device_of, numbers

# What platform.machine() says where a bundle for one kind of processor runs.
PROCESSORS = {"cpu-x86-64": ("x86_64", "amd64"), "cpu-arm64": ("aarch64", "arm64", "armv8l")}
# The least compute capability of a format's arithmetic: NVIDIA, CUDA C++ Programming Guide, "Compute Capabilities".
LEAST_CAPABILITY = {"fp8": "8.9", "fp8-dynamic": "8.9", "w4a8": "8.9", "nvfp4": "10.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """This machine. `installed` gives a package's version, `memory_bytes` is the system's."""

    installed: Callable[[str], str | None]
    gpus: Sequence[Gpu]
    processor: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """`best` is the name of the bundle for this machine; `refused` says of the others why they are not."""

    best: str
    refused: Mapping[str, str]


def this_machine() -> Machine:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return Machine(
        installed=installed_version, gpus=visible(gpus()), processor=platform.machine().lower(), memory_bytes=memory
    )


def choose_variant(manifests: Mapping[str, Manifest], machine: Machine) -> Variants:
    """The best bundle that runs here: on a GPU before the CPU, built for this very GPU before others, then the one that
    uses most memory. MissingRequirement, with every reason, where none does.
    """
    refused = {name: refusal(manifest, machine) for name, manifest in manifests.items()}
    able = [name for name, reason in refused.items() if reason is None]
    if not able:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise MissingRequirement(
            f"none of {len(refused)} bundles runs on this machine: {reasons}",
            hint="install what is missing, or name the bundle you want",
        )
    best = max(able, key=lambda name: _rank(manifests[name], machine))
    better = f"{best} suits this machine better"
    return Variants(best=best, refused={name: reason or better for name, reason in refused.items() if name != best})


def refusal(manifest: Manifest, machine: Machine) -> str | None:
    """Why a bundle does not run here, in a sentence; None where it does."""
    return _processor(manifest, machine) or _engine(manifest, machine) or _memory(manifest, machine)


def variants_in(folder: Path) -> dict[str, Path]:
    """The bundles of a folder of several, by name; empty where it has none, or is itself a bundle."""
    if (folder / MANIFEST_NAME).exists() or not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if (path / MANIFEST_NAME).is_file()}


def bundle_in(folder: Path) -> Path:
    """`folder` itself, or the bundle for this machine where it is a folder of several."""
    variants = variants_in(folder)
    if not variants:
        return folder
    manifests = {name: read_manifest(path) for name, path in variants.items()}
    return variants[choose_variant(manifests, this_machine()).best]


def _processor(manifest: Manifest, machine: Machine) -> str | None:
    profile = manifest.profile
    name = "cpu-arm64" if profile.get("kind") == "soc" else str(profile.get("name"))
    able = PROCESSORS.get(name)
    if able is None or machine.processor in able:
        return None
    return f"it is for {able[0]} processors, and this is {machine.processor}"


def _engine(manifest: Manifest, machine: Machine) -> str | None:
    if manifest.engine is not None:
        try:
            choose(Path(), manifest, machine.installed, lambda: machine.gpus)
        except BundleError as error:
            return error.message
        return _capability(manifest, machine)
    cuda = device_of(manifest.requirements.provider) == "cuda"
    edition = "onnxruntime-gpu" if cuda else "onnxruntime"
    found = machine.installed(edition) or (None if cuda else machine.installed("onnxruntime-gpu"))
    versions = {"numpy": machine.installed("numpy"), "tokenizers": machine.installed("tokenizers"), edition: found}
    for package, least in {"numpy": "", "tokenizers": "", edition: "", **manifest.requirements.packages}.items():
        name = edition if package.startswith("onnxruntime") else package
        version = versions.get(name) or machine.installed(name)
        if version is None:
            return f"the package {name} is missing"
        if numbers(version) < numbers(least.removeprefix(">=")):
            return f"it needs {name} {least}, found {version}"
    if cuda and not machine.gpus and manifest.profile.get("kind") != "soc":
        return "it needs an NVIDIA GPU, and nvidia-smi finds none"
    return None


def _capability(manifest: Manifest, machine: Machine) -> str | None:
    scheme = str(manifest.target.get("scheme"))
    least = LEAST_CAPABILITY.get(scheme)
    for gpu in machine.gpus:
        if least is not None and numbers(gpu.compute_capability) < numbers(least):
            return f"{scheme} needs compute capability {least}, and this {gpu.name} has {gpu.compute_capability}"
    return None


def _memory(manifest: Manifest, machine: Machine) -> str | None:
    """Whether the plan's bytes, which are those of one card, are there. A GPU that names none shares the system's."""
    needed = needed_bytes(manifest)
    on_gpu = manifest.engine is not None or device_of(manifest.requirements.provider) == "cuda"
    cards = [gpu.memory_bytes for gpu in machine.gpus if gpu.memory_bytes] if on_gpu else []
    there = max(cards, default=machine.memory_bytes)
    if not there or needed <= there:
        return None
    return f"it needs {needed / 1e9:.1f} GB of memory, and here are {there / 1e9:.1f} GB"


def needed_bytes(manifest: Manifest) -> int:
    """What the bundle's plan says it takes; 0 where it does not say."""
    memory = manifest.plan.get("memory")
    total = memory.get("total_bytes") if isinstance(memory, Mapping) else None
    return total if isinstance(total, int) else 0


def _rank(manifest: Manifest, machine: Machine) -> tuple[bool, bool, int]:
    on_gpu = manifest.engine is not None or device_of(manifest.requirements.provider) == "cuda"
    own = manifest.profile.get("compute_capability")
    exact = on_gpu and any(gpu.compute_capability == own for gpu in machine.gpus)
    return on_gpu, exact, needed_bytes(manifest)
