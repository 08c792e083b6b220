"""Which schemes and backends this version has, and what each backend can store: three tables and one check.

A new scheme or backend is a row here. `PLANNED` names what the command line's documentation promises for later, so that
asking for it early is answered with what to use instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgeforge.hardware.types import Target

GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeFacts:
    """`bits` per stored weight; `is_float` schemes have no groups and no scales."""

    bits: int
    is_float: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendFacts:
    """What one consumer's format can hold. Words are in order of preference."""

    schemes: tuple[str, ...]
    activations: tuple[str, ...]
    kinds: tuple[str, ...]
    max_tensor_parallel: int
    kv_cache_follows_activations: bool


SCHEMES: Mapping[str, SchemeFacts] = {
    "w4a16": SchemeFacts(bits=4, is_float=False),
    "w8a16": SchemeFacts(bits=8, is_float=False),
    "f16": SchemeFacts(bits=16, is_float=True),
    "f32": SchemeFacts(bits=32, is_float=True),
}

BACKENDS: Mapping[str, BackendFacts] = {
    # GroupQueryAttention's past and present share the type of its query (onnxruntime docs/ContribOperators.md).
    "onnx": BackendFacts(
        schemes=("w4a16", "w8a16", "f16", "f32"),
        activations=("f32", "f16"),
        kinds=("cpu", "gpu", "soc"),
        max_tensor_parallel=1,
        kv_cache_follows_activations=True,
    ),
}

PLANNED = frozenset({"w4a8", "fp8", "nvfp4", "auto", "modelopt", "tensorrt-llm", "compressed-tensors", "optimum"})


def find_conflict(target: Target) -> tuple[str, str] | None:
    """The first thing about `target` that this version cannot build: (field, sentence saying what to use), or None."""
    unknown = _word_conflict("backend", target.backend, tuple(BACKENDS), "")
    if unknown:
        return unknown
    backend = BACKENDS[target.backend]
    where = f" with backend {target.backend}"
    for name in ("scheme", "lm_head", "embedding"):
        conflict = _word_conflict(name, getattr(target, name), backend.schemes, where)
        if conflict:
            return conflict
    for name, holds, sentence in _RULES:
        if not holds(target, backend):
            return name, sentence.format(target=target, backend=backend)
    return None


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
        "kv_cache",
        lambda target, backend: not backend.kv_cache_follows_activations or target.kv_cache == target.activations,
        "kv_cache {target.kv_cache} must be the same as activations {target.activations} with backend {target.backend}",
    ),
    (
        "profile",
        lambda target, backend: target.profile.kind in backend.kinds,
        "backend {target.backend} does not run on a {target.profile.kind}",
    ),
    (
        "tensor_parallel",
        lambda target, backend: target.tensor_parallel <= backend.max_tensor_parallel,
        "tensor_parallel {target.tensor_parallel} is more than backend {target.backend} can use "
        "({backend.max_tensor_parallel})",
    ),
)


def _word_conflict(name: str, word: str, known: tuple[str, ...], where: str) -> tuple[str, str] | None:
    if word in known:
        return None
    state = "is not there yet" if word in PLANNED or word in SCHEMES else "is unknown"
    return name, f"{name} '{word}' {state}{where}; use {' or '.join(known)}"


def _side_scheme_holds(target: Target, scheme: str) -> bool:
    # Under a float scheme everything is float, and what head and embedding would have been does not matter.
    return SCHEMES[target.scheme].is_float or not SCHEMES[scheme].is_float or scheme == target.activations
