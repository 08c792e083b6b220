"""Which schemes, backends and engines this version has, and what each can hold or run: four tables and one check.

A new scheme, backend or engine is a row here. `PLANNED` names what the command line's documentation promises for later,
so that asking for it early is answered with what to use instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgeforge.hardware.algorithms import algorithm_conflict
from edgeforge.hardware.types import CodeFormat, Granularity, InputScale, Target

GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeFacts:
    """A row of the glossary's schemes, in the words of `edgeforge.quantization.scheme.QuantizationScheme`.

    `group_size` where the scheme fixes it; `symmetric` where it leaves no choice; `needs` the format that the
    hardware's arithmetic must have.
    """

    bits: int
    code_format: CodeFormat = "int"
    granularity: Granularity = "group"
    activations: InputScale = "none"
    group_size: int | None = None
    symmetric: bool = False
    needs: str | None = None

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
        schemes=("w4a16", "w8a16", "f16", "f32"),
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
        title="ONNX Runtime", runs={("onnx", scheme): None for scheme in ("w4a16", "w8a16", "float")}
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

PLANNED = frozenset({"auto", "optimum"})
MOST_CHOICES = 3  # in one sentence


def engine_for(backend: str, kind: str, scheme: str) -> str:
    """The engine that a backend's files are for unless the target says otherwise; unknown words give "unknown"."""
    if backend not in BACKENDS:
        return "unknown"
    engines = BACKENDS[backend].engines
    if kind == "soc" and "edge-llm" in engines:
        return "edge-llm"
    return next((name for name in engines if scheme in SCHEMES and ENGINES[name].loads(backend, scheme)), engines[0])


def find_conflict(target: Target) -> tuple[str, str] | None:
    """The first thing about `target` that this version cannot build: (field, sentence saying what to use), or None."""
    unknown = _word_conflict("backend", target.backend, tuple(BACKENDS), "")
    if unknown:
        return unknown
    backend = BACKENDS[target.backend]
    where = f" with backend {target.backend}"
    words = (("scheme", backend.schemes), ("lm_head", backend.sides), ("embedding", backend.sides))
    for name, known in (("engine", backend.engines), *words):
        conflict = _word_conflict(name, getattr(target, name), known, where)
        if conflict:
            return conflict
    for name, holds, sentence in _RULES:
        if not holds(target, backend):
            return name, sentence.format(target=target, backend=backend)
    return algorithm_conflict(target) or _engine_conflict(target)


_RULES: tuple[tuple[str, Callable[[Target, BackendFacts], bool], str], ...] = (
    (
        "group_size",
        lambda target, backend: target.group_size in GROUP_SIZES,
        "group_size {target.group_size} is not one of 16, 32, 64, 128, 256",
    ),
    (
        "activations",
        lambda target, backend: target.activations in backend.activations,
        "activations {target.activations} cannot be stored with backend {target.backend}",
    ),
    (
        "activations",
        lambda target, backend: target.activations in target.profile.formats,
        "activations {target.activations} are not a format of {target.profile.name}",
    ),
    (
        "scheme",
        lambda target, backend: not SCHEMES[target.scheme].is_float or target.scheme == target.activations,
        "scheme {target.scheme} must be the same as activations {target.activations} with backend {target.backend}",
    ),
    (
        "lm_head",
        lambda target, backend: _side_scheme_holds(target, target.lm_head),
        "lm_head {target.lm_head} must be an integer scheme or the activations' {target.activations}",
    ),
    (
        "embedding",
        lambda target, backend: _side_scheme_holds(target, target.embedding),
        "embedding {target.embedding} must be an integer scheme or the activations' {target.activations}",
    ),
    (
        "symmetric",
        lambda target, backend: target.symmetric or not backend.symmetric_only or SCHEMES[target.scheme].is_float,
        "backend {target.backend} stores no zero points; use --symmetric",
    ),
    (
        "kv_cache",
        lambda target, backend: not backend.kv_cache_follows_activations or target.kv_cache == target.activations,
        "kv_cache {target.kv_cache} must be the same as activations {target.activations} with backend {target.backend}",
    ),
    (
        "kv_cache",
        lambda target, backend: target.kv_cache in (target.activations, "fp8", "int8"),
        "kv_cache {target.kv_cache} must be fp8, int8 or the activations' {target.activations}",
    ),
    (
        "kv_cache",
        lambda target, backend: target.kv_cache in backend.kv_caches,
        "kv_cache {target.kv_cache} cannot be stored with backend {target.backend}; use {target.activations}",
    ),
    (
        "kv_cache",
        lambda target, backend: target.kv_cache in target.profile.formats,
        "kv_cache {target.kv_cache} is not a format of {target.profile.name}; use {target.activations}",
    ),
    (
        "profile",
        lambda target, backend: target.profile.kind in backend.kinds,
        "backend {target.backend} does not run on a {target.profile.kind}",
    ),
    (
        "tensor_parallel",
        lambda target, backend: target.tensor_parallel in backend.tensor_parallel,
        "tensor_parallel {target.tensor_parallel} is not one of {backend.tensor_parallel}, "
        "which backend {target.backend} can use",
    ),
    (
        "pipeline_parallel",
        lambda target, backend: target.pipeline_parallel <= backend.max_pipeline_parallel,
        "pipeline_parallel {target.pipeline_parallel} is more than backend {target.backend} can use "
        "({backend.max_pipeline_parallel})",
    ),
)


def _engine_conflict(target: Target) -> tuple[str, str] | None:
    """Whether the engine loads the files, and runs the scheme on this GPU; the sentence lists what would do."""
    engine, facts = ENGINES[target.engine], SCHEMES[target.scheme]
    profile, capability = target.profile, target.profile.compute_capability
    where = profile.name + (f" (compute capability {capability})" if capability else "")
    if facts.needs is not None and facts.needs not in profile.formats:
        return "scheme", f"{where} has no {facts.needs.upper()} arithmetic, which scheme {target.scheme} needs" + (
            _instead(target)
        )
    if not engine.loads(target.backend, target.scheme):
        return "engine", f"{engine.title} does not load scheme {target.scheme} from backend {target.backend}" + (
            _instead(target)
        )
    capabilities = engine.capabilities(target.backend, target.scheme)
    if capabilities is not None and capability not in capabilities:
        return "scheme", (
            f"{engine.title} does not run scheme {target.scheme} from backend {target.backend} on {where}"
            + _instead(target)
        )
    return None


def _instead(target: Target) -> str:
    """What does run there, as the user would type it: the same scheme by other roads, then the road's other schemes."""
    profile = target.profile

    def runs(backend: str, engine: str) -> tuple[str, ...]:
        found = runnable_schemes(profile.compute_capability, backend, engine, profile.formats)
        return tuple(name for name in found if not SCHEMES[name].is_float)

    roads = [
        (backend, engine)
        for backend, facts in BACKENDS.items()
        for engine in facts.engines
        if profile.kind in facts.kinds and target.scheme in runs(backend, engine)
    ]
    # What changes least comes first: the engine stays, else the backend does.
    roads.sort(key=lambda road: (road[1] != target.engine, road[0] != target.backend))
    same = [f"--backend {backend}" if backend != target.backend else f"--engine {engine}" for backend, engine in roads]
    others = [f"--scheme {name}" for name in runs(target.backend, target.engine)]
    choices = list(dict.fromkeys((same + others) if others or same else ["--backend onnx --scheme w4a16"]))
    return f"; use {' or '.join(choices[:MOST_CHOICES])}"


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


def _word_conflict(name: str, word: str, known: tuple[str, ...], where: str) -> tuple[str, str] | None:
    if word in known:
        return None
    choices = " or ".join(known)
    if word in SCHEMES or word in ENGINES:
        return name, f"{name} '{word}' is not for{where.removeprefix(' with')}; use {choices}"
    state = "is not there yet" if word in PLANNED else "is unknown"
    return name, f"{name} '{word}' {state}{where}; use {choices}"


def _side_scheme_holds(target: Target, scheme: str) -> bool:
    # Under a float scheme everything is float, and what head and embedding would have been does not matter.
    return SCHEMES[target.scheme].is_float or not SCHEMES[scheme].is_float or scheme == target.activations
