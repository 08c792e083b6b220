"""Whether what a target asks for goes together: one check, whose sentence says what to use instead.

`PLANNED` names what the command line's documentation promises for later, so that asking for it early is answered.
"""

from collections.abc import Callable

from edgeforge.hardware.algorithms import algorithm_conflict
from edgeforge.hardware.capabilities import BACKENDS, ENGINES, GROUP_SIZES, SCHEMES, BackendFacts, runnable_schemes
from edgeforge.hardware.types import Target

PLANNED = frozenset({"auto", "optimum"})
MOST_CHOICES = 3  # in one sentence


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
        "scheme",
        lambda target, backend: target.profile.kind in SCHEMES[target.scheme].kinds,
        "scheme {target.scheme} has kernels on processors only, not on {target.profile.name}; use w4a16 or w8a16",
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
        "rotate",
        lambda target, backend: not (target.rotate and SCHEMES[target.scheme].is_float),
        "a rotation helps weights that are rounded to codes, and scheme {target.scheme} rounds none; "
        "leave out --rotate, or use another --scheme",
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
