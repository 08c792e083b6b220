"""A plan as JSON and back, exactly. Distinct schemes are listed once and named by the tensors that use them."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from types import NoneType

from edgeforge.errors import UnusableInput
from edgeforge.hardware import target_from_json, target_to_json
from edgeforge.model.architecture import architecture_from_json, architecture_to_json
from edgeforge.planning.memory import MemoryBudget
from edgeforge.planning.plan import BuildPlan
from edgeforge.quantization.scheme import QuantizationScheme


def plan_to_json(plan: BuildPlan) -> dict[str, object]:
    """A JSON object, the same for equal plans on every machine; `plan_from_json` is its exact inverse."""
    memory = plan.memory
    return {
        "architecture": architecture_to_json(plan.architecture),
        "target": target_to_json(plan.target),
        "schemes": {scheme_key(scheme): scheme_to_json(scheme) for scheme in plan.schemes.values()},
        "tensors": {name: scheme_key(scheme) for name, scheme in plan.schemes.items()},
        "memory": {
            "weights_bytes": memory.weights_bytes,
            "kv_cache_bytes": memory.kv_cache_bytes,
            "activations_bytes": memory.activations_bytes,
            "overhead_bytes": memory.overhead_bytes,
            "total_bytes": memory.total_bytes,
            "available_bytes": memory.available_bytes,
        },
        "disk_bytes": plan.disk_bytes,
        "decode_tokens_per_s": plan.decode_tokens_per_s,
        "stages": list(plan.stages),
    }


def plan_from_json(document: Mapping[str, object]) -> BuildPlan:
    """The plan that `plan_to_json` wrote. Raises UnusableInput naming the key that is wrong."""
    schemes = {key: _scheme_from_json(value, key) for key, value in _table(document, "schemes").items()}
    tensors = _table(document, "tensors")
    missing = [name for name, key in tensors.items() if not isinstance(key, str) or key not in schemes]
    if missing:
        raise UnusableInput(f"plan: the tensor {missing[0]} names a scheme that is not listed")
    memory = _table(document, "memory")
    speed = document.get("decode_tokens_per_s")
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0 <= speed <= sys.float_info.max:
        raise UnusableInput("plan: 'decode_tokens_per_s' must be a number")
    return BuildPlan(
        architecture=architecture_from_json(_table(document, "architecture")),
        target=target_from_json(_table(document, "target"), "plan: target"),
        schemes={name: schemes[str(key)] for name, key in tensors.items()},
        memory=MemoryBudget(
            weights_bytes=_integer(memory, "weights_bytes"),
            kv_cache_bytes=_integer(memory, "kv_cache_bytes"),
            activations_bytes=_integer(memory, "activations_bytes"),
            overhead_bytes=_integer(memory, "overhead_bytes"),
            available_bytes=_integer(memory, "available_bytes"),
        ),
        disk_bytes=_integer(document, "disk_bytes"),
        decode_tokens_per_s=float(speed),
    )


def scheme_key(scheme: QuantizationScheme) -> str:
    """A short name that tells schemes apart: `w4a16`, `w4a16-g128`, `w4a16-g32-asymmetric`, `w4a16-g32-offset`."""
    if scheme.group_size is None:
        return scheme.name
    kind = "-offset" if scheme.offset else "" if scheme.symmetric else "-asymmetric"
    scales = "" if scheme.scale_dtype == "f32" else f"-{scheme.scale_dtype}"
    return f"{scheme.name}-g{scheme.group_size}{kind}{scales}"


def scheme_to_json(scheme: QuantizationScheme) -> dict[str, object]:
    return asdict(scheme)


_KINDS: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "bits": (int,),
    "group_size": (int, NoneType),
    "symmetric": (bool,),
    "offset": (bool,),
    "scale_dtype": (str,),
    "code_format": (str,),
    "granularity": (str,),
    "activations": (str,),
}


def _scheme_from_json(value: object, key: str) -> QuantizationScheme:
    if not isinstance(value, dict):
        raise UnusableInput(f"plan: the scheme {key} must be a table")
    for name, kinds in _KINDS.items():
        if name not in value or type(value[name]) not in kinds:
            raise UnusableInput(f"plan: the scheme {key} has a wrong '{name}'")
    if set(value) - set(_KINDS):
        raise UnusableInput(f"plan: the scheme {key} has unknown keys")
    return QuantizationScheme(**value)


def _table(document: Mapping[str, object], key: str) -> dict[str, object]:
    value = document.get(key)
    if not isinstance(value, dict):
        raise UnusableInput(f"plan: '{key}' must be a table")
    return value


def _integer(document: Mapping[str, object], key: str) -> int:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UnusableInput(f"plan: '{key}' must be a whole number")
    return value
