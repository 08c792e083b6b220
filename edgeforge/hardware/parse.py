"""Tables to profiles and targets, and back to JSON. The same reader checks a TOML file and a manifest's JSON."""

from collections.abc import Mapping
from typing import cast

from edgeforge.hardware.algorithms import AUTO
from edgeforge.hardware.capabilities import engine_for
from edgeforge.hardware.conflicts import find_conflict
from edgeforge.hardware.fields import Fields
from edgeforge.hardware.types import (
    DEFAULT_MAX_ACCURACY_LOSS,
    FloatName,
    Gate,
    HardwareProfile,
    Kind,
    KvCacheName,
    Target,
)

KINDS: tuple[Kind, ...] = ("cpu", "gpu", "soc")
FORMATS = ("f32", "f16", "bf16", "int8", "int4", "fp8", "nvfp4")
FLOATS: tuple[FloatName, ...] = ("f32", "f16", "bf16")
KV_CACHES: tuple[KvCacheName, ...] = (*FLOATS, "fp8", "int8")
# Figures that must name their source; reserved_bytes too where it is not zero.
FIGURES = ("memory_bytes", "reserved_bytes", "bandwidth_bytes_per_s", "compute_capability", "formats")


def parse_profile(fields: Fields, name: str) -> HardwareProfile:
    """A profile from its table; every figure must have a source. Raises UnusableInput."""
    formats = fields.texts("formats")
    unknown = [word for word in formats if word not in FORMATS]
    if unknown or not formats:
        raise fields.refuse(f"'formats' must be words of {', '.join(FORMATS)}, not {list(formats)}")
    profile = HardwareProfile(
        name=name,
        title=fields.text("title"),
        vendor=fields.text("vendor"),
        kind=cast(Kind, fields.choice("kind", KINDS)),
        compute_capability=fields.optional_text("compute_capability"),
        memory_bytes=fields.integer("memory_bytes", minimum=1),
        reserved_bytes=fields.integer("reserved_bytes", minimum=0),
        bandwidth_bytes_per_s=fields.integer("bandwidth_bytes_per_s", minimum=1),
        formats=formats,
        sources=fields.text_table("sources"),
    )
    fields.finish()
    if profile.reserved_bytes >= profile.memory_bytes:
        raise fields.refuse("'reserved_bytes' leaves no memory")
    for figure in FIGURES:
        if getattr(profile, figure) and not profile.sources.get(figure):
            raise fields.refuse(f"'{figure}' has no source", hint=f'add [sources] {figure} = "document and page"')
    return profile


def parse_target(fields: Fields, name: str, profile: HardwareProfile) -> Target:
    """A target from its table (without the key `profile`), checked against what this version can build."""
    gate = fields.table("gate")
    backend, scheme = fields.text("backend"), fields.text("scheme")
    target = Target(
        name=name,
        description=fields.text("description"),
        reason=fields.optional_text("reason") or "",
        profile=profile,
        backend=backend,
        engine=fields.optional_text("engine") or engine_for(backend, profile.kind, scheme),
        scheme=scheme,
        group_size=fields.integer("group_size", minimum=1),
        symmetric=fields.flag("symmetric"),
        algorithm=fields.optional_text("algorithm") or AUTO,
        rotate=fields.flag("rotate", default=False),
        lm_head=fields.text("lm_head"),
        embedding=fields.text("embedding"),
        activations=cast(FloatName, fields.choice("activations", FLOATS)),
        kv_cache=cast(KvCacheName, fields.choice("kv_cache", KV_CACHES)),
        context=fields.integer("context", minimum=1),
        batch=fields.integer("batch", minimum=1),
        tensor_parallel=fields.integer("tensor_parallel", minimum=1),
        pipeline_parallel=fields.integer("pipeline_parallel", minimum=1, default=1),
        default_model=fields.text("default_model"),
        gate=_parse_gate(gate),
    )
    fields.finish()
    conflict = find_conflict(target)
    if conflict:
        raise fields.refuse(conflict[1])
    return target


def profile_to_json(profile: HardwareProfile) -> dict[str, object]:
    """Every field but the name's own file; `profile_from_json` is the exact inverse."""
    return {
        "name": profile.name,
        "title": profile.title,
        "vendor": profile.vendor,
        "kind": profile.kind,
        "compute_capability": profile.compute_capability,
        "memory_bytes": profile.memory_bytes,
        "reserved_bytes": profile.reserved_bytes,
        "bandwidth_bytes_per_s": profile.bandwidth_bytes_per_s,
        "formats": list(profile.formats),
        "sources": dict(profile.sources),
    }


def profile_from_json(document: Mapping[str, object], where: str = "profile") -> HardwareProfile:
    """Raises UnusableInput naming the key that is wrong."""
    fields = Fields(document, where)
    return parse_profile(fields, fields.text("name"))


def target_to_json(target: Target) -> dict[str, object]:
    """The resolved target with its profile inside; `target_from_json` is the exact inverse."""
    gate = target.gate
    return {
        "name": target.name,
        "description": target.description,
        "reason": target.reason,
        "profile": profile_to_json(target.profile),
        "backend": target.backend,
        "engine": target.engine,
        "scheme": target.scheme,
        "group_size": target.group_size,
        "symmetric": target.symmetric,
        "algorithm": target.algorithm,
        "rotate": target.rotate,
        "lm_head": target.lm_head,
        "embedding": target.embedding,
        "activations": target.activations,
        "kv_cache": target.kv_cache,
        "context": target.context,
        "batch": target.batch,
        "tensor_parallel": target.tensor_parallel,
        "pipeline_parallel": target.pipeline_parallel,
        "default_model": target.default_model,
        "gate": {
            "max_mean_kl_divergence": gate.max_mean_kl_divergence,
            "max_perplexity_ratio": gate.max_perplexity_ratio,
            "max_accuracy_loss": gate.max_accuracy_loss,
            "confidence": gate.confidence,
        },
    }


def target_from_json(document: Mapping[str, object], where: str = "target") -> Target:
    """Raises UnusableInput naming the key that is wrong."""
    fields = Fields(document, where)
    profile = fields.raw("profile")
    if not isinstance(profile, dict):
        raise fields.refuse("'profile' must be a table")
    return parse_target(fields, fields.text("name"), profile_from_json(profile, f"{where}.profile"))


def _parse_gate(fields: Fields) -> Gate:
    gate = Gate(
        max_mean_kl_divergence=fields.number("max_mean_kl_divergence", above=0),
        max_perplexity_ratio=fields.number("max_perplexity_ratio", above=0),
        # targets inside older bundles do not have it
        max_accuracy_loss=fields.number("max_accuracy_loss", above=0, below=1, default=DEFAULT_MAX_ACCURACY_LOSS),
        confidence=fields.number("confidence", above=0.5, below=1),
    )
    fields.finish()
    return gate
