"""Every reader of files that come from elsewhere: a valid file, how it is damaged, and what is done with it.

A reader may accept what it is given or refuse it with one of EdgeForge's own errors. Nothing else.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import fsspec
from mutations import (
    Mutation,
    mutate_bytes,
    mutate_gguf,
    mutate_json,
    mutate_lines_of_json,
    mutate_safetensors,
    mutate_toml,
)
from originals import Originals, make_originals

from edgeforge.errors import EdgeForgeError
from edgeforge.hardware import load_profile, load_target
from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.model.gguf import open_gguf
from edgeforge.model.safetensors_header import read_header
from edgeforge.pipeline import scales_file
from edgeforge.pipeline.journal import read_asked
from edgeforge.pipeline.resuming import still_there
from edgeforge.planning import plan_from_json
from edgeforge.publish.artifact import MANIFEST_TYPE, TARGET, layers_from
from edgeforge.publish.index import variants_from
from edgeforge.publish.journal import Journal
from edgeforge.publish.reference import OciReference, UrlReference
from edgeforge.publish.urls import pull_from_url
from edgeforge.runtime import BundleError, verify
from edgeforge.runtime.integrity import SUMS_NAME, sha256_of, sums_text
from edgeforge.runtime.manifest import MANIFEST_NAME, read_manifest
from edgeforge.runtime.parity import read_parity
from edgeforge.validation.data import load_texts

Read = Callable[[bytes], object]
Use = Callable[[Path], object]

REFUSALS = (EdgeForgeError, BundleError)
PULLED_FROM = "memory://fuzz/bundle"
REFERENCE = OciReference(host="127.0.0.1", name="a/b", tag="c")
DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """`read` gets the damaged bytes of what `original` is whole."""

    name: str
    original: bytes
    mutate: Mutation
    read: Read


def make_readers(folder: Path) -> dict[str, Reader]:
    """All of them by name; they write into `folder`."""
    originals = make_originals(folder / "originals")
    readers = [
        *_checkpoint_readers(originals, folder),
        *_library_readers(folder),
        *_bundle_readers(originals, folder),
        *_publishing_readers(originals, folder),
        *_pipeline_readers(originals, folder),
    ]
    return {reader.name: reader for reader in readers}


def _in_copy(source: Path, folder: Path, file: str, use: Use) -> tuple[bytes, Read]:
    """The file in `source`, and a function that uses a copy of the directory in which that file is another."""
    copy = folder / f"with-{file.replace('/', '-')}"
    shutil.copytree(source, copy)

    def read(data: bytes) -> object:
        (copy / file).write_bytes(data)
        return use(copy)

    return (source / file).read_bytes(), read


def _reader(name: str, mutate: Mutation, original: bytes, read: Read) -> Reader:
    return Reader(name=name, original=original, mutate=mutate, read=read)


def _from_file(path: Path, use: Use) -> Read:
    def read(data: bytes) -> object:
        path.write_bytes(data)
        return use(path)

    return read


def _open_whole(path: Path) -> None:
    """As `inspect` and the start of a build do."""
    checkpoint = open_checkpoint(str(path))
    str(checkpoint.fingerprint), checkpoint.notices, checkpoint.config
    checkpoint.tokenizer.load()


def _open_gguf(path: Path) -> None:
    checkpoint = open_gguf(path)
    assert checkpoint.config
    checkpoint.tensor(checkpoint.names[0]).rows(0, 1)
    checkpoint.tokenizer.load()


def _checkpoint_readers(originals: Originals, folder: Path) -> list[Reader]:
    source = originals.checkpoint
    damaged: Mapping[str, Mutation] = {
        "config.json": mutate_json,
        "generation_config.json": mutate_json,
        "model.safetensors.index.json": mutate_json,
        "tokenizer.json": mutate_json,
        "tokenizer_config.json": mutate_json,
        "a.safetensors": mutate_safetensors,
    }
    found = [_reader(name, mutate, *_in_copy(source, folder, name, _open_whole)) for name, mutate in damaged.items()]
    weights, header = (source / "a.safetensors").read_bytes(), _from_file(folder / "x.safetensors", read_header)
    found.append(_reader("safetensors", mutate_safetensors, weights, header))
    whole = originals.gguf.read_bytes()
    found.append(_reader("gguf", mutate_gguf, whole, _from_file(folder / "x.gguf", _open_gguf)))
    return found


def _library_readers(folder: Path) -> list[Reader]:
    root = Path(__file__).resolve().parents[2]
    target, profile = ((root / kind / "rtx4090.toml").read_bytes() for kind in ("targets", "profiles"))
    return [
        _reader("target", mutate_toml, target, _from_file(folder / "t.toml", load_target)),
        _reader("profile", mutate_toml, profile, _from_file(folder / "p.toml", load_profile)),
    ]


def _sealed(bundle: Path, file: str) -> None:
    """Its sums say what the damaged file is now, so that what lies behind the sums is reached."""
    lines = [line.split("  ", 1) for line in (bundle / SUMS_NAME).read_text().splitlines()]
    digests = {path: digest for digest, path in lines} | {file: sha256_of(bundle / file)}
    (bundle / SUMS_NAME).write_text(sums_text(digests))


def _verify_sealed(bundle: Path) -> None:
    _sealed(bundle, MANIFEST_NAME)
    verify(bundle, "full")


def _bundle_readers(originals: Originals, folder: Path) -> list[Reader]:
    source = originals.bundle
    manifest = (source / MANIFEST_NAME).read_bytes()
    alone = folder / "alone"
    alone.mkdir()
    read_alone = _from_file(alone / MANIFEST_NAME, lambda path: read_manifest(path.parent))
    return [
        _reader("manifest", mutate_json, manifest, read_alone),
        _reader("sealed-manifest", mutate_json, *_in_copy(source, folder, MANIFEST_NAME, _verify_sealed)),
        _reader("sums", mutate_bytes, *_in_copy(source, folder, SUMS_NAME, lambda bundle: verify(bundle, "full"))),
        _reader("parity", mutate_json, originals.parity, _from_file(folder / "parity.json", read_parity)),
    ]


def _publishing_readers(originals: Originals, folder: Path) -> list[Reader]:
    layers = [
        {
            "mediaType": "application/octet-stream",
            "digest": DIGEST,
            "size": 3,
            "annotations": {"org.opencontainers.image.title": path},
        }
        for path in ("model/a", "model/b")
    ]
    manifest = json.dumps({"schemaVersion": 2, "layers": layers}).encode()
    entry = {**layers[0], "mediaType": MANIFEST_TYPE, "annotations": {TARGET: "cpu"}}
    index = json.dumps({"manifests": [entry]}).encode()
    journal = Journal(folder=folder / "journal")
    journal.begin(REFERENCE, DIGEST, "http://127.0.0.1/x")
    upload = journal.upload_file(REFERENCE, DIGEST)
    read_upload = _from_file(upload, lambda path: journal.upload(REFERENCE, DIGEST))
    return [
        _reader("oci-manifest", mutate_json, manifest, layers_from),
        _reader("oci-index", mutate_json, index, variants_from),
        _reader("upload", mutate_json, upload.read_bytes(), read_upload),
        _reader("pulled-manifest.json", mutate_json, *_pulling(originals, folder, MANIFEST_NAME)),
        _reader("pulled-SHA256SUMS", mutate_bytes, *_pulling(originals, folder, SUMS_NAME)),
    ]


def _pulling(originals: Originals, folder: Path, file: str) -> tuple[bytes, Read]:
    """A bundle in fsspec's memory, one file of which is another, pulled."""
    system, where = fsspec.filesystem("memory"), f"{PULLED_FROM}/{file}"
    system.put(str(originals.bundle), where, recursive=True)
    destination = folder / f"pulled-{file}"

    def read(data: bytes) -> object:
        system.pipe_file(f"{where}/{file}", data)
        shutil.rmtree(destination, ignore_errors=True)
        reference = UrlReference(url=where)
        return pull_from_url(reference, destination, check=lambda bundle: None, progress=lambda done, total: None)

    return (originals.bundle / file).read_bytes(), read


def _pipeline_readers(originals: Originals, folder: Path) -> list[Reader]:
    checkpoint = open_checkpoint(str(originals.checkpoint))
    scales = _from_file(folder / "s.safetensors", lambda path: scales_file.load(path, checkpoint))
    text = "Ein Text, zwölf Wörter.\n".encode() * 9
    return [
        _reader("scales", mutate_safetensors, originals.scales.read_bytes(), scales),
        _reader("plan", mutate_json, originals.plan, _read_plan),
        _reader("text", mutate_bytes, text, _from_file(folder / "x.txt", load_texts)),
        *_journal_readers(folder),
    ]


def _read_plan(data: bytes) -> object:
    """A plan comes out of a manifest, which is JSON before it is a plan."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return plan_from_json(value) if isinstance(value, dict) else None


def _journal_readers(folder: Path) -> list[Reader]:
    """What an interrupted build left, and whether its weights are still there."""
    weights = folder / "weights"
    weights.mkdir()
    (weights / "data").write_bytes(bytes(64))
    sha256 = sha256_of(weights / "data")
    lines = [
        {"asked": {"model": "sha256:0", "targets": ["cpu"]}},
        {"piece": ["model.norm.weight", 0, 16], "extents": [["data", 0, 64, sha256]]},
    ]
    original = b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    def read(path: Path) -> object:
        found = still_there(path, weights, lambda piece: piece.stop > 0, threads=1, progress=lambda done, total: None)
        return read_asked(path), list(found)

    return [_reader("build-journal", mutate_lines_of_json, original, _from_file(folder / "j", read))]
