"""Which engine runs a bundle, decided before any of them is imported.

Importing tensorrt_llm needs libcuda and takes seconds, so that what is installed is read from package metadata and what
the machine is from nvidia-smi.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import MissingRequirement, UnusableBundle
from .gpu import Gpu, gpus, visible
from .manifest import EngineRecord, Manifest
from .requirements import Device, check_packages, device_of, numbers

if TYPE_CHECKING:
    from .engine import Engine

Program = Literal["tensorrt-llm", "vllm", "tensorrt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A program that runs bundles without a graph: its PyPI name, and the oldest version with the interface used."""

    title: str
    package: str
    least: str


PROGRAMS: Mapping[Program, Facts] = {
    "tensorrt-llm": Facts(title="TensorRT-LLM", package="tensorrt-llm", least="1.0"),
    "vllm": Facts(title="vLLM", package="vllm", least="0.16"),
    "tensorrt": Facts(title="TensorRT-LLM", package="tensorrt-llm", least="1.0"),
}
# Which scheme of which backend a program loads. TensorRT-LLM: docs/source/features/quantization.md, and the
# linear methods of tensorrt_llm/_torch/modules/linear.py. vLLM 0.33: LINEAR_ALGOS of
# vllm/model_executor/layers/quantization/modelopt.py (no W4A16_AWQ), and compressed_tensors/ beside it.
LOADS: Mapping[Program, frozenset[tuple[str, str]]] = {
    "tensorrt-llm": frozenset(
        {
            *(("modelopt", scheme) for scheme in ("fp8", "fp8-dynamic", "w4a16", "w4a8", "nvfp4")),
            *(("modelopt", scheme) for scheme in ("f16", "bf16", "f32")),
            ("compressed-tensors", "fp8-dynamic"),
        }
    ),
    "vllm": frozenset(
        {
            *(("modelopt", scheme) for scheme in ("fp8", "fp8-dynamic", "nvfp4", "f16", "bf16", "f32")),
            *(("compressed-tensors", scheme) for scheme in ("w4a16", "fp8", "fp8-dynamic", "f16", "bf16", "f32")),
        }
    ),
    "tensorrt": frozenset(("trtllm-engine", scheme) for scheme in ("fp8", "w4a16", "w4a8", "f16", "bf16", "f32")),
}


def open_engine(
    bundle: Path,
    manifest: Manifest,
    *,
    device: Device | None,
    threads: int | None,
    batch: int | None,
    prefix_cache_bytes: int | None,
    exact: bool,
) -> "Engine":
    """The engine for the bundle, its requirements checked; nothing of the model is read yet.

    MissingRequirement for a package, a GPU, a version, or a step on the device that is not there; UnusableBundle for a
    device that the bundle has no way to run on.
    """
    packages = manifest.requirements.packages
    if manifest.engine is None:
        chosen = device or device_of(manifest.requirements.provider)
        check_packages({"onnxruntime": "", **packages}, chosen)
        # Only now, since these modules import the packages.
        from .engine import OnnxEngine

        return OnnxEngine(
            bundle,
            manifest.model,
            device=chosen,
            threads=threads,
            batch=batch,
            prefix_cache_bytes=prefix_cache_bytes,
            exact=exact,
        )
    if batch not in (None, 1) or prefix_cache_bytes is not None or exact:
        raise UnusableBundle(
            f"a bundle of backend {manifest.model.backend} computes one answer at a time, with its program's own cache",
            hint="leave batch, prefix_cache_bytes and exact out, or serve the bundle with the program itself",
        )
    if device == "cpu":
        raise UnusableBundle(f"a bundle of backend {manifest.model.backend} runs on NVIDIA GPUs only")
    program, version = choose(bundle, manifest, installed_version, lambda: visible(gpus()))
    ours = {facts.package for facts in PROGRAMS.values()}
    check_packages({name: least for name, least in packages.items() if name not in ours}, "cuda")
    try:
        from .llm_engine import LlmEngine, open_program
    except ModuleNotFoundError:
        raise MissingRequirement(
            f"this runtime came with a bundle for onnxruntime, and has no adapter to {PROGRAMS[program].title}",
            hint=f"import the runtime that {bundle} brings along",
        ) from None

    return LlmEngine(open_program(program, version, bundle, manifest), manifest.model.context_length)


def choose(
    bundle: Path,
    manifest: Manifest,
    installed: Callable[[str], str | None],
    found: Callable[[], Sequence[Gpu]],
) -> tuple[Program, str]:
    """The program that runs the bundle here, and its version; MissingRequirement says what is not there.

    `installed` gives a package's version, `found` the GPUs.
    """
    record = manifest.engine
    assert record is not None, "a bundle with a graph"
    if record.name == "edge-llm":
        raise MissingRequirement(
            "this bundle is for TensorRT Edge-LLM, whose runtime is a C++ program on the device",
            hint=f"run this on the device: sh {bundle / (record.script or 'build-on-device.sh')}",
        )
    if record.state == "to-be-built":
        raise MissingRequirement(
            "the engine of this bundle is still to be built, on the GPU that runs it",
            hint="build it with trtllm-build of TensorRT-LLM 1.2.1"
            if record.script is None
            else f"run this on the device: sh {bundle / record.script}",
        )
    if record.name == "tensorrt":
        return "tensorrt", _built(manifest, record, installed, found)
    chosen = _installed_program(manifest, record.name, installed)
    _check_gpus(record, found())
    return chosen


def installed_version(package: str) -> str | None:
    """The version in a package's metadata, without importing it; None where it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _built(
    manifest: Manifest,
    record: EngineRecord,
    installed: Callable[[str], str | None],
    found: Callable[[], Sequence[Gpu]],
) -> str:
    """The version of TensorRT-LLM, which must be the one that built the engine; the GPU must be such a one too."""
    if manifest.model.backend != "trtllm-engine":
        raise UnusableBundle(
            "this bundle holds a checkpoint for trtllm-build, and no engine",
            hint="build it with --backend trtllm-engine",
        )
    _check_gpus(record, found())
    own, version = record.versions["tensorrt_llm"], installed("tensorrt-llm")
    if version is None:
        raise MissingRequirement(
            f"the engine needs TensorRT-LLM {own}, which built it", hint=f"pip install 'tensorrt-llm=={own}'"
        )
    if version != own:
        raise MissingRequirement(
            f"the engine was built with TensorRT-LLM {own}, and this is {version}: it loads in its own version only",
            hint=f"pip install 'tensorrt-llm=={own}' into an environment of its own, or build the bundle again",
        )
    return version


def _installed_program(
    manifest: Manifest, first: Literal["tensorrt-llm", "vllm"], installed: Callable[[str], str | None]
) -> tuple[Program, str]:
    """The program that the manifest names where it is there, else the other one if that loads such files."""
    backend, scheme = manifest.model.backend, str(manifest.target.get("scheme"))
    able: list[str] = []
    unable: list[str] = []
    other: Program = "vllm" if first == "tensorrt-llm" else "tensorrt-llm"
    for program in (first, other):
        facts = PROGRAMS[program]
        least = _least(manifest, facts)
        version = installed(facts.package)
        loads = program == first or (backend, scheme) in LOADS[program]
        if loads and version is not None and numbers(version) >= numbers(least):
            return program, version
        if loads:
            able.append(f"{facts.title} {least}" + (f" (this is {version})" if version else ""))
        elif version is not None:
            unable.append(f"{facts.title} {version} is installed, and does not load scheme {scheme} of {backend}")
    facts = PROGRAMS[first]
    raise MissingRequirement(
        "; ".join([f"this bundle needs {' or '.join(able)} or newer", *unable]),
        hint=f"pip install '{facts.package}>={_least(manifest, facts)}'",
    )


def _least(manifest: Manifest, facts: Facts) -> str:
    asked = manifest.requirements.packages.get(facts.package, "").removeprefix(">=")
    return max(asked, facts.least, key=numbers)


def _check_gpus(record: EngineRecord, found: Sequence[Gpu]) -> None:
    """As many GPUs as the engine takes, of the kind and with the driver that its files are tied to."""
    world = record.tensor_parallel * record.pipeline_parallel
    if len(found) < world:
        raise MissingRequirement(
            f"this bundle needs {world} NVIDIA GPU{'s' * (world > 1)}, and nvidia-smi finds {len(found) or 'none'}",
            hint="check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
        )
    tied, driver = record.compute_capability, record.versions.get("driver", "")
    for gpu in found[:world]:
        if tied is not None and gpu.compute_capability != tied:
            raise MissingRequirement(
                f"the engine was built for GPUs of compute capability {tied}, "
                f"and this {gpu.name} has {gpu.compute_capability}",
                hint="build the bundle again for this GPU",
            )
        if numbers(gpu.driver) < numbers(driver):
            raise MissingRequirement(
                f"the engine was built with driver {driver}, and this machine has the older {gpu.driver}",
                hint="update the NVIDIA driver, or build the bundle again on this machine",
            )
