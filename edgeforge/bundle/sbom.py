"""sbom.cdx.json: what is in the bundle, what it was made of and what it needs, as a CycloneDX 1.6 ML-BOM.

Written by hand, since cyclonedx-python-lib has no model cards or data sets yet; the tests hold it against that
library's copy of the official schema. No serial number, and no time unless SOURCE_DATE_EPOCH gives one: same bundle,
same bytes.
"""

from collections.abc import Mapping
from datetime import datetime

from edgeforge.bundle.licences import llama_version
from edgeforge.bundle.names import base_model
from edgeforge.bundle.provenance import checkpoint_uri
from edgeforge.runtime.manifest import FileRecord, Manifest, SourceRecord

Json = dict[str, object]


def sbom(
    manifest: Manifest,
    *,
    manifest_sha256: str,
    validation_text: Mapping[str, object] | None = None,
    licence: str | None = None,
    built_at: datetime | None = None,
) -> Json:
    """The document as JSON values: the model by its manifest's hash, the checkpoint it comes from, data sets, packages,
    and every file with its hash.

    `validation_text`: name and sha256 of the text that the last report scored. `licence`: an SPDX id, where there is
    one for the model's own.
    """
    libraries = [_library(name, least) for name, least in sorted(manifest.requirements.packages.items())]
    datasets = _datasets(manifest.plan, validation_text)
    metadata: Json = {} if built_at is None else {"timestamp": built_at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    tool = {"type": "application", "name": "edgeforge", "version": manifest.edgeforge_version}
    metadata |= {
        "tools": {"components": [tool]},
        "component": _model(manifest, manifest_sha256, licence, [str(dataset["bom-ref"]) for dataset in datasets]),
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": metadata,
        "components": datasets + libraries + [_file(path, record) for path, record in sorted(manifest.files.items())],
        "dependencies": [{"ref": "model", "dependsOn": [library["bom-ref"] for library in libraries]}],
    }


def _model(manifest: Manifest, manifest_sha256: str, licence: str | None, datasets: list[str]) -> Json:
    source, provider = manifest.source, manifest.requirements.provider
    name = base_model(source) or "local checkpoint"
    component: Json = {"type": "machine-learning-model", "bom-ref": "model", "name": name}
    component["version"] = source.revision or manifest_sha256[:12]
    component["description"] = f"{name}, built for {manifest.target.get('name')} by EdgeForge"
    # manifest.json holds the SHA-256 of every file, so that its own stands for the whole.
    component["hashes"] = [{"alg": "SHA-256", "content": manifest_sha256}]
    llama = llama_version(source, [])
    if licence is not None:
        component["licenses"] = [{"license": {"id": licence}}]
    elif llama is not None:
        component["licenses"] = [{"license": {"name": f"Llama {llama}".rstrip() + " Community License"}}]
    component["pedigree"] = {"ancestors": [_ancestor(source)]}
    component["modelCard"] = {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": "LlamaForCausalLM",
            "datasets": [{"ref": name} for name in datasets],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        }
    }
    facts = {
        "source.kind": source.kind,
        "source.precision": source.precision,
        "source.fingerprint": source.fingerprint,
        "target": manifest.target.get("name"),
        "backend": manifest.model.backend,
        "scheme": manifest.target.get("scheme"),
        "provider": provider,
    }
    component["properties"] = [
        {"name": f"edgeforge:{name}", "value": str(value)} for name, value in facts.items() if value is not None
    ]
    return component


def _ancestor(source: SourceRecord) -> Json:
    """The checkpoint as its authors published it."""
    name = base_model(source) or "local checkpoint"
    component: Json = {"type": "machine-learning-model", "bom-ref": "checkpoint", "name": name}
    if source.revision:
        component["version"] = source.revision
    uri = checkpoint_uri(source)
    if uri.startswith("pkg:"):
        component["purl"] = uri
    component["properties"] = [{"name": "edgeforge:source.fingerprint", "value": source.fingerprint}]
    return component


def _datasets(plan: Mapping[str, object], validation_text: Mapping[str, object] | None) -> list[Json]:
    found = []
    calibration = plan.get("calibration")
    if isinstance(calibration, Mapping) and calibration.get("text_sha256"):
        found.append(_dataset("calibration", "calibration text", str(calibration["text_sha256"])))
    if validation_text is not None:
        found.append(_dataset("validation", str(validation_text["name"]), str(validation_text["sha256"])))
    return found


def _dataset(use: str, name: str, sha256: str) -> Json:
    return {
        "type": "data",
        "bom-ref": f"data:{use}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        "data": [{"type": "dataset", "name": name, "description": f"what the model was held to for {use}"}],
    }


def _library(name: str, least: str) -> Json:
    purl = f"pkg:pypi/{name}"
    properties = [{"name": "edgeforge:version", "value": least}]
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "purl": purl,
        "scope": "required",
        "properties": properties,
    }


def _file(path: str, record: FileRecord) -> Json:
    hashes = [{"alg": "SHA-256", "content": record.sha256}]
    return {"type": "file", "bom-ref": f"file:{path}", "name": path, "hashes": hashes}
