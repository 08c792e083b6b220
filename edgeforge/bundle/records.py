"""manifest.json as it is written: the exact inverse of `edgeforge.runtime.manifest`, deterministic to the byte."""

import json
from dataclasses import asdict

from edgeforge.runtime.manifest import Manifest, ModelRecord
from edgeforge.runtime.parity import PARITY_NAME

_ROLES = {
    "LICENSE": "licence",
    "NOTICE": "notice",
    "__main__.py": "entry",
    "edgeforge_runtime.py": "runtime",
    "provenance.json": "provenance",
    PARITY_NAME: "parity",
}
_SUFFIXES = {
    ".jinja": "chat_template",
    ".data": "weights",
    ".safetensors": "weights",
    ".engine": "engine",
    ".sh": "script",
}


def manifest_to_json(manifest: Manifest) -> dict[str, object]:
    """Plain JSON values. `manifest_from_json(manifest_to_json(m)) == m`."""
    value: dict[str, object] = json.loads(manifest_text(manifest))
    return value


def manifest_text(manifest: Manifest) -> str:
    """The file's text: fields in the dataclasses' order, files sorted by path, no time, no host.

    `engine` and `model.runtime_graph` are left out where there is none, so that older runtimes read such bundles.
    """
    fields = asdict(manifest)
    fields["files"] = dict(sorted(fields["files"].items()))
    if manifest.engine is None:
        del fields["engine"]
    if manifest.model.runtime_graph is None:
        del fields["model"]["runtime_graph"]
    return json_text(fields)


def json_text(value: object) -> str:
    """JSON for people and for hashing: two spaces, UTF-8, a newline at the end; ValueError on NaN."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def role_of(path: str, model: ModelRecord) -> str:
    """What a bundle's file is for, in one word."""
    named = {
        model.graph: "graph",
        model.scoring_graph: "scoring_graph",
        model.runtime_graph: "runtime_graph",
        model.weights: "weights",
        model.tokenizer: "tokenizer",
    }
    if path in named:
        return named[path]
    if path in _ROLES:
        return _ROLES[path]
    folder = path.partition("/")[0]
    if folder == "runtime":
        return "runtime"
    if folder == "licenses":
        return "licence"
    return next((role for suffix, role in _SUFFIXES.items() if path.endswith(suffix)), "configuration")
