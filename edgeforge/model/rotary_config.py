"""How config.json spells rotary scaling, read into one value and written back.

Two spellings are read: `rope_theta` with `rope_scaling` {type | rope_type, ...} (transformers 4), and `rope_parameters`
{rope_type, rope_theta, ...} (transformers 5). The first is written, since both versions read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgeforge.errors import UnusableInput
from edgeforge.model import fields
from edgeforge.model.config_checks import WHERE, unsupported

RotaryKind = Literal["default", "linear", "dynamic", "llama3"]
ROTARY_KINDS: tuple[RotaryKind, ...] = ("default", "linear", "dynamic", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """How positions turn the heads. `factor` is 1 for `default`; the last three belong to `llama3` alone."""

    theta: float
    kind: RotaryKind = "default"
    factor: float = 1.0
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


def rotary_from_config(config: Mapping[str, object]) -> Rotary:
    """The rotary settings of a config.json in either spelling; UnusableInput by name where they are not supported."""
    old = fields.table(config, "rope_scaling", WHERE)
    new = fields.table(config, "rope_parameters", WHERE)
    thetas = {
        fields.number(place, "rope_theta", WHERE)
        for place in (config, old or {}, new or {})
        if place.get("rope_theta") is not None
    }
    if len(thetas) > 1:
        raise UnusableInput(f"{WHERE}: rope_theta is given twice with different values, {sorted(thetas)}")
    theta = thetas.pop() if thetas else 10000.0
    found = [_scaling(theta, name, place) for name, place in (("rope_scaling", old), ("rope_parameters", new)) if place]
    if len(found) == 2 and found[0] != found[1]:
        raise UnusableInput(f"{WHERE}: rope_scaling and rope_parameters disagree")
    return found[0] if found else Rotary(theta=theta)


def _scaling(theta: float, name: str, values: Mapping[str, object]) -> Rotary:
    where = f"{WHERE}: {name}"
    kind = _rotary_kind(name, values)
    known = {"type", "rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
    if kind == "llama3":
        known |= {"low_freq_factor", "high_freq_factor"}
    if values.get("partial_rotary_factor") == 1:
        known.add("partial_rotary_factor")
    for field, value in values.items():
        if field not in known and value is not None:
            raise unsupported(f"{name}.{field}", value)
    if kind == "default":
        return Rotary(theta=theta)
    factor = fields.number(values, "factor", where)
    if kind != "llama3":
        return Rotary(theta=theta, kind=kind, factor=factor)
    low = fields.number(values, "low_freq_factor", where)
    high = fields.number(values, "high_freq_factor", where)
    if high <= low:
        raise UnusableInput(f"{where}: high_freq_factor {high} must be above low_freq_factor {low}")
    original = fields.integer(values, "original_max_position_embeddings", where, least=1)
    return Rotary(
        theta=theta,
        kind=kind,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )


def _rotary_kind(name: str, values: Mapping[str, object]) -> RotaryKind:
    kinds = {values[key] for key in ("type", "rope_type") if isinstance(values.get(key), str)}
    if len(kinds) > 1:
        raise UnusableInput(f"{WHERE}: {name} has a type and a rope_type that disagree, {sorted(map(str, kinds))}")
    if not kinds and set(values) <= {"rope_theta"}:
        return "default"
    asked = next(iter(kinds), None)
    kind = next((known for known in ROTARY_KINDS if known == asked), None)
    if kind is None:
        raise UnusableInput(
            f"{WHERE}: {name} asks for the rotary scaling {asked}, which EdgeForge does not support",
            hint="supported: " + ", ".join(ROTARY_KINDS),
        )
    return kind


def rope_scaling(rotary: Rotary) -> dict[str, object] | None:
    if rotary.kind == "default":
        return None
    scaling: dict[str, object] = {"rope_type": rotary.kind, "factor": rotary.factor}
    if rotary.kind == "llama3":
        scaling["low_freq_factor"] = rotary.low_freq_factor
        scaling["high_freq_factor"] = rotary.high_freq_factor
        scaling["original_max_position_embeddings"] = rotary.original_max_position_embeddings
    return scaling


def rotary_from_json(value: Mapping[str, object]) -> Rotary:
    where = "architecture.rotary"
    kind = next((known for known in ROTARY_KINDS if known == value.get("kind")), None)
    if kind is None:
        raise fields.wrong(where, "kind", value.get("kind"), "one of " + ", ".join(ROTARY_KINDS))
    low, high, original = (
        value.get(n) for n in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    return Rotary(
        theta=fields.number(value, "theta", where),
        kind=kind,
        factor=fields.number(value, "factor", where),
        low_freq_factor=None if low is None else fields.number(value, "low_freq_factor", where),
        high_freq_factor=None if high is None else fields.number(value, "high_freq_factor", where),
        original_max_position_embeddings=None
        if original is None
        else fields.integer(value, "original_max_position_embeddings", where, least=1),
    )
