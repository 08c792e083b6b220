"""Our bundles: built by the command that users run, measured through the runtime that they embed.

*As run* is `edgeforge.runtime` on the bundle. *Weights alone* is the same graph with MatMulNBits at accuracy_level 1:
onnxruntime then multiplies the dequantized weights with activations that nobody rounded. Bundles for engines that are
not here are read back and run by the reference forward pass, with the engine's rounding of activations or without.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import onnx
from builds import EDGEFORGE
from fidelity_subjects import CONTEXT, Subject
from processes import Child, run_child

from edgeforge import runtime
from edgeforge.bundle import seal
from edgeforge.model.forward import untouched
from edgeforge.planning import plan_from_json
from edgeforge.runtime.manifest import ENGINE_BACKENDS, MANIFEST_NAME, Manifest, read_manifest
from edgeforge.validation import stored
from edgeforge.validation.bench import BenchReport, bench
from edgeforge.validation.compare import ForwardLogits
from edgeforge.validation.statistics import Summary

WEIGHT_FILES = (".onnx.data", ".safetensors")
SPEED_REPEATS = 3
FLOAT_ACTIVATIONS = 1  # MatMulNBits accuracy_level 1: float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a bundle cost, how it answers and how fast. `weight_bytes`: of the files that hold weights."""

    weight_bytes: int
    build: Child
    as_run: Summary
    weights_alone: Summary | None
    speed: BenchReport | None


def measure_bundle(
    subject: Subject, arguments: tuple[str, ...], *, name: str, threads: int, alone: bool = True
) -> Measured:
    """`edgeforge build --model SUBJECT ...`, measured and removed. RuntimeError with what a failed build said.

    `alone`: measure the weights alone as well.
    """
    bundle = subject.folder / f"bundle-{name}"
    shutil.rmtree(bundle, ignore_errors=True)
    command: list[str | Path] = [*EDGEFORGE, "build", *arguments, "--model", subject.model, "--out", bundle]
    command += ["--context", str(CONTEXT), "--no-validate", "--quiet", "--threads", str(threads)]
    child = run_child(command, log=subject.folder / "logs" / f"{name}.log", threads=threads)
    manifest = read_manifest(bundle)
    measure = _stored if manifest.model.backend in ENGINE_BACKENDS else _onnx
    # The speed first: the processor is as warm as the build left it, for all bundles alike.
    speed = None if measure is _stored else bench(bundle, repeats=SPEED_REPEATS, threads=threads)
    measured = Measured(
        weight_bytes=sum(record.size for file, record in manifest.files.items() if file.endswith(WEIGHT_FILES)),
        build=child,
        as_run=measure(bundle, manifest, subject, threads),
        weights_alone=measure(bundle, manifest, subject, threads, alone=True) if alone else None,
        speed=speed,
    )
    shutil.rmtree(bundle)
    return measured


def _onnx(bundle: Path, manifest: Manifest, subject: Subject, threads: int, *, alone: bool = False) -> Summary:
    with _with_float_activations(bundle, manifest) if alone else nullcontext(bundle) as run:
        model = runtime.load(run, threads=threads, device="cpu")
        chunks = subject.chunks
        return subject.compare(lambda chunk: model.score(chunks.ids[chunk].tolist())[chunks.positions])


def _stored(bundle: Path, manifest: Manifest, subject: Subject, threads: int, *, alone: bool = False) -> Summary:
    weights, tap = stored.open_stored(plan_from_json(manifest.plan), bundle / "model")
    return subject.compare(
        ForwardLogits(
            weights=weights,
            chunks=subject.chunks,
            progress=lambda done, total: None,
            tap=untouched if alone else tap,
        )
    )


@contextmanager
def _with_float_activations(bundle: Path, manifest: Manifest) -> Iterator[Path]:
    """A copy of an ONNX bundle, weights linked, whose scoring graph asks for accuracy_level 1."""
    copy = bundle.with_name(f"{bundle.name}-float")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy, copy_function=os.link)
    graph = manifest.model.scoring_graph
    assert graph is not None
    model = onnx.load(bundle / graph, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = FLOAT_ACTIVATIONS
    content = model.SerializeToString()
    _replace(copy / graph, content)
    document = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    document["files"][graph] |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    _replace(copy / MANIFEST_NAME, (json.dumps(document, indent=2) + "\n").encode())
    seal(copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def _replace(path: Path, content: bytes) -> None:
    """A file of its own: writing through the link would change the original."""
    path.unlink()
    path.write_bytes(content)
