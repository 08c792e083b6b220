"""What the command line may change about a target, checked the same way as a target's file."""

from collections.abc import Sequence
from dataclasses import replace

from edgeforge.errors import UsageError
from edgeforge.hardware import BACKENDS, ENGINES, SCHEMES, FloatName, KvCacheName, Target, engine_for, find_conflict

_FLOATS: dict[str, FloatName] = {"f16": "f16", "bf16": "bf16", "f32": "f32"}
_KV_CACHES: dict[str, KvCacheName] = {**_FLOATS, "fp8": "fp8", "int8": "int8"}


def apply_overrides(
    target: Target,
    *,
    backend: str | None = None,
    engine: str | None = None,
    scheme: str | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    algorithm: str | None = None,
    rotate: bool | None = None,
    kv_cache: str | None = None,
    context: int | None = None,
    batch: int | None = None,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
) -> Target:
    """The target with what the user asked for; None leaves a field alone. Raises UsageError."""
    if backend is not None:
        target = _with_backend(target, backend, scheme)
    if scheme is not None:
        target = with_scheme(target, scheme) if scheme in SCHEMES else replace(target, scheme=scheme)
        target = replace(target, engine=_engine(target))
    if kv_cache is not None and kv_cache not in _KV_CACHES:
        raise UsageError(f"kv_cache '{kv_cache}' is unknown; use {' or '.join(_KV_CACHES)}")
    target = replace(
        target,
        engine=target.engine if engine is None else engine,
        kv_cache=target.kv_cache if kv_cache is None else _KV_CACHES[kv_cache],
        group_size=target.group_size if group_size is None else group_size,
        symmetric=target.symmetric if symmetric is None else symmetric,
        algorithm=target.algorithm if algorithm is None else algorithm,
        rotate=target.rotate if rotate is None else rotate,
        context=target.context if context is None else context,
        batch=target.batch if batch is None else batch,
        tensor_parallel=target.tensor_parallel if tensor_parallel is None else tensor_parallel,
        pipeline_parallel=target.pipeline_parallel if pipeline_parallel is None else pipeline_parallel,
    )
    for name in ("context", "batch", "tensor_parallel", "pipeline_parallel"):
        if getattr(target, name) < 1:
            raise UsageError(f"{name} must be at least 1, not {getattr(target, name)}")
    conflict = find_conflict(target)
    if conflict:
        raise UsageError(conflict[1], hint=f"`edgeforge targets show {target.name}` lists the target's settings")
    return target


def with_scheme(target: Target, scheme: str) -> Target:
    """The target with another scheme for its linears; an unquantized one also sets what flows between them."""
    flowing = _FLOATS.get(scheme, target.activations)
    cache = target.kv_cache if target.kv_cache in ("fp8", "int8") or scheme not in _FLOATS else flowing
    lm_head, embedding = (
        flowing if side == target.activations else side for side in (target.lm_head, target.embedding)
    )
    return replace(target, scheme=scheme, activations=flowing, kv_cache=cache, lm_head=lm_head, embedding=embedding)


def _with_backend(target: Target, backend: str, scheme: str | None) -> Target:
    """The target's files written by another backend: what that one cannot hold falls to what it likes best."""
    if backend not in BACKENDS:
        raise UsageError(f"backend '{backend}' is unknown; use {' or '.join(BACKENDS)}")
    if backend == target.backend:
        return target
    facts, formats = BACKENDS[backend], target.profile.formats
    runnable = [name for name in facts.schemes if SCHEMES[name].needs is None or SCHEMES[name].needs in formats]
    flowing = _first(facts.activations, target)
    changed = replace(
        target,
        backend=backend,
        scheme=scheme or (target.scheme if target.scheme in facts.schemes else _preferred(backend, runnable)),
        activations=_FLOATS[flowing],
        kv_cache=_KV_CACHES[flowing],
        lm_head=_side(facts.sides, flowing, "w4a16"),
        embedding=_side(facts.sides, flowing, "w8a16"),
        symmetric=target.symmetric or facts.symmetric_only,
    )
    return replace(changed, engine=_engine(changed))


def _engine(target: Target) -> str:
    """The target's engine where it loads the scheme, else the backend's first that does."""
    best = engine_for(target.backend, target.profile.kind, target.scheme)
    if target.engine not in BACKENDS[target.backend].engines or target.scheme not in SCHEMES or best == "edge-llm":
        return best
    return target.engine if ENGINES[target.engine].loads(target.backend, target.scheme) else best


def _preferred(backend: str, runnable: Sequence[str]) -> str:
    """ONNX Runtime's best is its smallest; the others list their schemes in order."""
    return "w4a16" if backend == "onnx" else runnable[0]


def _first(known: Sequence[str], target: Target) -> str:
    """What flows between linears: what does now where the backend holds it, else its first that the hardware has.

    A GPU's arithmetic is made for 16 bits, so float32 comes last there.
    """
    if target.activations in known:
        return target.activations
    order = known if target.profile.kind == "cpu" else sorted(known, key="f32".__eq__)
    return next(name for name in order if name in target.profile.formats)


def _side(known: Sequence[str], flowing: str, small: str) -> str:
    return small if small in known else flowing
