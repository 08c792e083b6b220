"""sbom.cdx.json: what is in the bundle and what it needs, as CycloneDX 1.6. No serial number and no time: same bundle,
same bytes.
"""

from collections.abc import Mapping

from edgeforge.runtime.manifest import FileRecord, Requirements, SourceRecord

Json = dict[str, object]


def sbom(*, source: SourceRecord, requirements: Requirements, files: Mapping[str, FileRecord], version: str) -> Json:
    """The document as JSON values: the model, the packages it runs on, every file with its hash."""
    libraries = [_library(name, least) for name, least in sorted(requirements.packages.items())]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "edgeforge", "version": version}]},
            "component": _model(source),
        },
        "components": libraries + [_file(path, record) for path, record in sorted(files.items())],
        "dependencies": [{"ref": "model", "dependsOn": [library["bom-ref"] for library in libraries]}],
    }


def _model(source: SourceRecord) -> Json:
    component: Json = {"type": "machine-learning-model", "bom-ref": "model", "name": source.name or "local checkpoint"}
    if source.revision:
        component["version"] = source.revision
    component["properties"] = [
        {"name": "edgeforge:source.kind", "value": source.kind},
        {"name": "edgeforge:source.precision", "value": source.precision},
        {"name": "edgeforge:source.fingerprint", "value": source.fingerprint},
    ]
    return component


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
