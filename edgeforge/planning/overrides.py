"""What the command line may change about a target, checked the same way as a target's file."""

from dataclasses import replace

from edgeforge.errors import UsageError
from edgeforge.hardware import SCHEMES, FloatName, Target, find_conflict

_FLOATS: dict[str, FloatName] = {"f16": "f16", "f32": "f32"}


def apply_overrides(
    target: Target,
    *,
    scheme: str | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    context: int | None = None,
    batch: int | None = None,
) -> Target:
    """The target with what the user asked for; None leaves a field alone. Raises UsageError."""
    if scheme is not None and scheme in SCHEMES:
        target = with_scheme(target, scheme)
    elif scheme is not None:
        target = replace(target, scheme=scheme)
    target = replace(
        target,
        group_size=target.group_size if group_size is None else group_size,
        symmetric=target.symmetric if symmetric is None else symmetric,
        context=target.context if context is None else context,
        batch=target.batch if batch is None else batch,
    )
    for name in ("context", "batch"):
        if getattr(target, name) < 1:
            raise UsageError(f"{name} must be at least 1, not {getattr(target, name)}")
    conflict = find_conflict(target)
    if conflict:
        raise UsageError(conflict[1], hint=f"`edgeforge targets show {target.name}` lists the target's settings")
    return target


def with_scheme(target: Target, scheme: str) -> Target:
    """The target with another scheme for its linears; an unquantized one also sets what flows between them."""
    flowing = _FLOATS.get(scheme, target.activations)
    cache = flowing if scheme in _FLOATS else target.kv_cache
    return replace(target, scheme=scheme, activations=flowing, kv_cache=cache)
