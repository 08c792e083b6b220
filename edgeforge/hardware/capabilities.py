"""Which schemes, backends and engines this version has, and what each can hold or run: three tables.

A new scheme, backend or engine is a row here. What may stand together is checked in `conflicts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edgeforge.hardware.types import CodeFormat, Granularity, InputScale

GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeFacts:
    """A row of the glossary's schemes, in the words of `edgeforge.quantization.scheme.QuantizationScheme`.

    `group_size` where the scheme fixes it; `symmetric` where it leaves no choice; `needs` the format that the
    hardware's arithmetic must have; `kinds` the devices that have kernels for it.
    """

    bits: int
    code_format: CodeFormat = "int"
    granularity: Granularity = "group"
    activations: InputScale = "none"
    group_size: int | None = None
    symmetric: bool = False
    needs: str | None = None
    kinds: tuple[str, ...] = ("cpu", "gpu", "soc")

    @property
    def is_float(self) -> bool:
        return self.bits >= 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendFacts:
    """What one consumer's format can hold. Words are in order of preference: the first is what an override falls to.

    `scale_dtype`: the type of stored scales, None for the activations' own. `sides`: the schemes of the output head and
    the embedding. `whole_groups`: whether a row must divide into groups.
    """

    engines: tuple[str, ...]
    schemes: tuple[str, ...]
    sides: tuple[str, ...]
    activations: tuple[str, ...]
    kv_caches: tuple[str, ...]
    kinds: tuple[str, ...]
    group_sizes: tuple[int, ...] = GROUP_SIZES
    symmetric_only: bool = False
    whole_groups: bool = False
    scale_dtype: str | None = None
    tensor_parallel: tuple[int, ...] = (1,)
    max_pipeline_parallel: int = 1
    kv_cache_follows_activations: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """A consumer: what it loads, and on which NVIDIA GPUs (compute capabilities; None where every device will do).

    `runs` has the unquantized schemes under the name "float". `max_parameters`: the largest dense model it takes.
    """

    title: str
    runs: Mapping[tuple[str, str], tuple[str, ...] | None]
    max_parameters: int | None = None

    def capabilities(self, backend: str, scheme: str) -> tuple[str, ...] | None:
        """Where it runs the scheme out of the backend's files. KeyError where it does not load them at all."""
        return self.runs[backend, "float" if SCHEMES[scheme].is_float else scheme]

    def loads(self, backend: str, scheme: str) -> bool:
        return (backend, "float" if SCHEMES[scheme].is_float else scheme) in self.runs


SCHEMES: Mapping[str, SchemeFacts] = {
    "w4a16": SchemeFacts(bits=4),
    # Stored as 4 bits and 2: onnxruntime has kernels for both on processors; on GPUs nobody tried its 2 bits.
    "w6a16": SchemeFacts(bits=6, kinds=("cpu",)),
    "w8a16": SchemeFacts(bits=8),
    "w4a8": SchemeFacts(bits=4, activations="static", symmetric=True, needs="fp8"),
    "fp8": SchemeFacts(
        bits=8, code_format="e4m3", granularity="tensor", activations="static", symmetric=True, needs="fp8"
    ),
    "fp8-dynamic": SchemeFacts(
        bits=8, code_format="e4m3", granularity="channel", activations="dynamic", symmetric=True, needs="fp8"
    ),
    "nvfp4": SchemeFacts(
        bits=4, code_format="e2m1", activations="static", group_size=16, symmetric=True, needs="nvfp4"
    ),
    "bf16": SchemeFacts(bits=16),
    "f16": SchemeFacts(bits=16),
    "f32": SchemeFacts(bits=32),
}

CARDS = (1, 2, 4, 8, 16)
FLOATS = ("bf16", "f16", "f32")

_CHECKPOINTS: Mapping[str, BackendFacts] = {
    # GroupQueryAttention's past and present share the type of its query (onnxruntime docs/ContribOperators.md).
    "onnx": BackendFacts(
        engines=("onnxruntime",),
        schemes=("w4a16", "w8a16", "w6a16", "f16", "f32"),
        sides=("w4a16", "w8a16", "f16", "f32"),
        activations=("f32", "f16"),
        kv_caches=("f32", "f16"),
        kinds=("cpu", "gpu", "soc"),
        kv_cache_follows_activations=True,
    ),
    "modelopt": BackendFacts(
        engines=("tensorrt-llm", "edge-llm", "vllm"),
        schemes=("fp8", "w4a16", "nvfp4", "w4a8", "fp8-dynamic", "bf16", "f16"),
        sides=FLOATS,
        activations=FLOATS,
        kv_caches=(*FLOATS, "fp8"),
        kinds=("gpu", "soc"),
        symmetric_only=True,
        whole_groups=True,
        scale_dtype="f32",
        tensor_parallel=CARDS,
        max_pipeline_parallel=16,
    ),
    "compressed-tensors": BackendFacts(
        engines=("vllm", "tensorrt-llm"),
        schemes=("w4a16", "fp8-dynamic", "fp8", "bf16", "f16"),
        sides=FLOATS,
        activations=FLOATS,
        kv_caches=(*FLOATS, "fp8"),
        kinds=("gpu",),
        whole_groups=True,
        tensor_parallel=CARDS,
        max_pipeline_parallel=16,
    ),
    "tensorrt-llm": BackendFacts(
        engines=("tensorrt",),
        schemes=("fp8", "w4a16", "w4a8", "bf16", "f16"),
        sides=FLOATS,
        activations=("bf16", "f16"),
        kv_caches=("bf16", "f16", "fp8", "int8"),
        kinds=("gpu",),
        symmetric_only=True,
        whole_groups=True,
        scale_dtype="f32",
        tensor_parallel=CARDS,
        max_pipeline_parallel=16,
    ),
}
# The same checkpoint, with the engine that trtllm-build makes of it.
BACKENDS: Mapping[str, BackendFacts] = {**_CHECKPOINTS, "trtllm-engine": _CHECKPOINTS["tensorrt-llm"]}

ADA_ON = ("8.9", "9.0", "10.0", "12.0")
AMPERE_ON = ("8.0", "8.6", *ADA_ON)
BUILD_ERA = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")

# TensorRT-LLM: docs/source/legacy/reference/precision.md and the quantization pages of its documentation; vLLM:
# docs/features/quantization/README.md; Edge-LLM: the support matrix of tensorrt-edgellm 0.11.
ENGINES: Mapping[str, EngineFacts] = {
    "onnxruntime": EngineFacts(
        title="ONNX Runtime", runs={("onnx", scheme): None for scheme in ("w4a16", "w6a16", "w8a16", "float")}
    ),
    "tensorrt-llm": EngineFacts(
        title="TensorRT-LLM",
        runs={
            ("modelopt", "fp8"): ADA_ON,
            ("modelopt", "fp8-dynamic"): ADA_ON,
            ("modelopt", "w4a16"): ("8.0", "8.6", "8.9", "9.0", "10.0"),
            ("modelopt", "w4a8"): ("8.9", "9.0"),
            ("modelopt", "nvfp4"): ("10.0", "12.0"),
            ("modelopt", "float"): AMPERE_ON,
            ("compressed-tensors", "fp8-dynamic"): ADA_ON,
        },
    ),
    "edge-llm": EngineFacts(
        title="TensorRT Edge-LLM",
        max_parameters=30_000_000_000,
        runs={
            ("modelopt", "w4a16"): ("8.7", "11.0"),
            ("modelopt", "fp8"): ("11.0",),
            ("modelopt", "nvfp4"): ("11.0",),
            ("modelopt", "float"): ("8.7", "11.0"),
        },
    ),
    "vllm": EngineFacts(
        title="vLLM",
        runs={
            ("modelopt", "fp8"): ADA_ON,
            ("modelopt", "fp8-dynamic"): ADA_ON,
            ("modelopt", "nvfp4"): ("10.0", "12.0"),
            ("modelopt", "float"): AMPERE_ON,
            ("compressed-tensors", "w4a16"): AMPERE_ON,
            ("compressed-tensors", "fp8"): ADA_ON,
            ("compressed-tensors", "fp8-dynamic"): ADA_ON,
            ("compressed-tensors", "float"): AMPERE_ON,
        },
    ),
    "tensorrt": EngineFacts(
        title="TensorRT-LLM 1.2.1 and older",
        runs={
            (backend, scheme): capabilities
            for backend in ("tensorrt-llm", "trtllm-engine")
            for scheme, capabilities in (
                ("fp8", ADA_ON),
                ("w4a16", ("8.0", "8.6", "8.9", "9.0")),
                ("w4a8", ("8.9", "9.0")),
                ("float", BUILD_ERA),
            )
        },
    ),
}


def engine_for(backend: str, kind: str, scheme: str) -> str:
    """The engine that a backend's files are for unless the target says otherwise; unknown words give "unknown"."""
    if backend not in BACKENDS:
        return "unknown"
    engines = BACKENDS[backend].engines
    if kind == "soc" and "edge-llm" in engines:
        return "edge-llm"
    return next((name for name in engines if scheme in SCHEMES and ENGINES[name].loads(backend, scheme)), engines[0])


def runnable_schemes(capability: str | None, backend: str, engine: str, formats: tuple[str, ...]) -> tuple[str, ...]:
    """The schemes of a backend that an engine runs on a GPU of this compute capability, in order of preference."""
    return tuple(
        name
        for name in BACKENDS[backend].schemes
        if ENGINES[engine].loads(backend, name)
        and (SCHEMES[name].needs is None or SCHEMES[name].needs in formats)
        and (not SCHEMES[name].is_float or name in formats)
        and ((found := ENGINES[engine].capabilities(backend, name)) is None or capability in found)
    )
