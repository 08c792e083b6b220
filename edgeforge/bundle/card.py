"""README.md: the bundle's model card, with the front matter that the hub reads (hf.co/docs/hub/model-cards).

A function of the manifest, the licence texts and the last report, so that the same bundle gets the same card. The
front matter is written here and not by a YAML library, whose next version may break lines elsewhere.
"""

import json
from collections.abc import Mapping
from importlib import resources

from edgeforge.bundle.licences import BUILT_WITH_LLAMA, attribution, llama_version
from edgeforge.bundle.names import base_model, hub_licence, title_of
from edgeforge.runtime.manifest import Manifest
from edgeforge.runtime.requirements import device_of, pip_name

WORDS = {"pass": "passed", "undecided": "too few items to tell", "fail": "FAILED"}
ENGINES = {
    "onnxruntime": "ONNX Runtime",
    "tensorrt-llm": "TensorRT-LLM",
    "vllm": "vLLM",
    "edge-llm": "TensorRT Edge-LLM",
    "tensorrt": "TensorRT-LLM",
}
_TAGS = {
    "w4a16": ("4-bit", "int4"),
    "w6a16": ("6-bit", "int6"),
    "w8a16": ("8-bit", "int8"),
    "w4a8": ("4-bit", "int4", "fp8"),
}

Json = dict[str, object]


def card(manifest: Manifest, *, licence: str, texts: Mapping[str, str], report: Mapping[str, object] | None) -> str:
    """README.md's text. `licence`: LICENSE; `texts`: every licence text by path; `report`: validation.json, where one
    is of this manifest.
    """
    from jinja2 import Environment, StrictUndefined

    source, engine = manifest.source, _engine(manifest)
    llama = llama_version(source, texts.values())
    template = (resources.files("edgeforge.bundle") / "card.md.jinja").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["quoted"] = _quoted
    return environment.from_string(template).render(
        manifest=manifest,
        front_matter=front_matter(manifest, licence=licence, texts=texts),
        title=title_of(source),
        base=base_model(source),
        target=manifest.target.get("name"),
        device=manifest.profile.get("title") or manifest.profile.get("name"),
        engine=ENGINES[engine],
        quantization=_quantization(manifest.target),
        packages=sorted(pip_name(name, device_of(manifest.requirements.provider)) for name in _packages(manifest)),
        report=report,
        words=WORDS,
        pm=_plus_minus,
        facts=_facts(manifest),
        licence=hub_licence(source, licence, texts.values()),
        llama=llama,
        built_with_llama=BUILT_WITH_LLAMA,
        attribution=attribution(llama or ""),
    )


def front_matter(manifest: Manifest, *, licence: str, texts: Mapping[str, str]) -> dict[str, str | list[str]]:
    """What the hub filters by, in a fixed order; keys without a value are left out."""
    source, target, engine = manifest.source, manifest.target, _engine(manifest)
    base, terms = base_model(source), hub_licence(source, licence, texts.values())
    fields: dict[str, str | list[str]] = {}
    if base:
        fields |= {"base_model": base, "base_model_relation": "quantized"}
    if terms:
        fields["license"] = terms
    if terms == "other":
        fields |= {"license_name": f"{title_of(source)}-licence".lower(), "license_link": "LICENSE"}
    scheme = str(target.get("scheme") or "")
    tags = ["edgeforge", "llama", *_TAGS.get(scheme, ()), scheme, manifest.model.backend, engine]
    fields |= {"library_name": engine, "pipeline_tag": "text-generation"}
    fields["tags"] = list(dict.fromkeys(tag for tag in tags if tag))
    if scheme:
        fields["quantization"] = scheme
    return fields


def _engine(manifest: Manifest) -> str:
    return "onnxruntime" if manifest.engine is None else manifest.engine.name


def _packages(manifest: Manifest) -> list[str]:
    """What the runtime needs; jinja2 where there is a chat template to render."""
    return [*manifest.requirements.packages, *(["jinja2"] if manifest.model.chat_template else [])]


def _quantization(target: Mapping[str, object]) -> str:
    scheme, group_size = target.get("scheme"), target.get("group_size")
    if scheme is None:
        return "as published"
    if scheme in ("f32", "f16", "bf16"):
        return f"unquantized ({scheme})"
    groups = f" in groups of {group_size}" if scheme in ("w4a16", "w6a16", "w8a16") and group_size else ""
    return f"quantized to {scheme}{groups}"


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    target, source, model = manifest.target, manifest.source, manifest.model
    told = {
        "target": target.get("name"),
        "weights": _quantization(target),
        "codes chosen by": target.get("algorithm"),
        "files for": f"{ENGINES[_engine(manifest)]} ({model.backend})",
        "KV cache": model.kv_cache,
        "context": f"{model.context_length:,} tokens",
        "size": f"{sum(record.size for record in manifest.files.values()) / 1e6:,.1f} MB",
        "original": base_model(source) or "a local checkpoint",
        "revision": source.revision,
        "published in": source.precision,
        "fingerprint": f"`{source.fingerprint}`",
        "reproducible": "yes" if manifest.determinism.reproducible else f"no: {manifest.determinism.note}",
    }
    return [(name, str(value)) for name, value in told.items() if value is not None]


def _plus_minus(report: Mapping[str, object], figure: str, digits: int) -> str:
    return f"{report[figure]:.{digits}f} ± {report[f'{figure}_standard_error']:.{digits}f}"


def _quoted(value: str) -> str:
    """A YAML scalar. Plain where nothing could be taken for something else, else in JSON's quotes, which YAML reads."""
    plain = value.replace("-", "").replace("_", "").replace("/", "").replace(".", "")
    is_word = plain.isascii() and plain.isalnum() and value[0].isalpha() and value.lower() not in ("true", "false")
    is_word = is_word and value.lower() not in ("yes", "no", "on", "off", "null", "y", "n")
    return value if is_word else json.dumps(value, ensure_ascii=False)
