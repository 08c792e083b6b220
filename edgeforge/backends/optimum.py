"""The second, independent road: Hugging Face's optimum-onnx writes the graph from transformers' own Llama.

optimum reads Hugging Face directories only, so the checkpoint, GGUF or not, is first written as one. The export runs
in a process of its own: tracing patches torch and transformers, fills the memory and talks a lot, and all of that ends
with it. Files: model.onnx, and beside it model.onnx_data where optimum keeps the weights apart (2 GB and more).
"""

import json
import math
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgeforge.backends import Requirements
from edgeforge.errors import EdgeForgeError, MissingDependency, OutOfResources, UnusableInput
from edgeforge.model.architecture import hf_config
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.model.safetensors_writer import write_safetensors
from edgeforge.planning import BuildPlan

GRAPH_FILE = "model.onnx"
EXTERNAL_DATA_FILE = "model.onnx_data"  # the name is optimum's
PACKAGES = ("optimum-onnx", "torch", "transformers")
STORAGE = {"f32": "F32", "f16": "F16"}  # safetensors' words
TORCH = {"f32": "float32", "f16": "float16"}
OPTIMUM = {"f32": "fp32", "f16": "fp16"}
PIECE_ELEMENTS = 1 << 20
COPIES_ON_DISK = 3
"""The directory that optimum reads, the graph as torch writes it, and the graph as optimum writes it again."""

# Validation is EdgeForge's, on text and against the checkpoint itself.
PROGRAM = """
import sys
from optimum.exporters.onnx import main_export

source, output, dtype = sys.argv[1:]
main_export(
    source,
    output,
    task="text-generation-with-past",
    library_name="transformers",
    framework="pt",
    device="cpu",
    dtype=dtype,
    local_files_only=True,
    do_validation=False,
)
"""


def check_installed() -> None:
    """MissingDependency where a package of the `optimum` extra is not there; imports none of them."""
    missing = [package for package in PACKAGES if not _is_installed(package)]
    if missing:
        raise MissingDependency(
            f"--exporter optimum needs {' and '.join(missing)}", hint="pip install 'edgeforge[optimum]'"
        )


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def requirements(plan: BuildPlan) -> Requirements:
    """See `edgeforge.backends.Backend`."""
    if plan.target.profile.kind == "cpu":
        return Requirements(packages={"onnxruntime": ">=1.23"}, provider="CPUExecutionProvider")
    return Requirements(packages={"onnxruntime-gpu": ">=1.23"}, provider="CUDAExecutionProvider")


def data_file(folder: Path) -> str | None:
    """The name of the weights' file in `folder`, or None where the graph holds them itself."""
    return EXTERNAL_DATA_FILE if (folder / EXTERNAL_DATA_FILE).is_file() else None


def export(plan: BuildPlan, checkpoint: Checkpoint, folder: Path) -> Requirements:
    """Put the unquantized graph, in the scheme's precision, and its weights into `folder`.

    What it writes on the way lies beside `folder` and is gone at the end. Raises MissingDependency, OutOfResources, or
    EdgeForgeError with optimum's own last words.
    """
    check_installed()
    _check_disk(plan, folder)
    with TemporaryDirectory(prefix=".optimum-", dir=folder.parent) as scratch:
        source, output = Path(scratch, "checkpoint"), Path(scratch, "exported")
        source.mkdir()
        _write_checkpoint(plan, checkpoint, source)
        _run_optimum(source, output, OPTIMUM[plan.target.scheme])
        for name in (GRAPH_FILE, EXTERNAL_DATA_FILE):
            if (output / name).is_file():
                os.replace(output / name, folder / name)
    return requirements(plan)


def _check_disk(plan: BuildPlan, folder: Path) -> None:
    needed = COPIES_ON_DISK * plan.architecture.parameter_count * plan.schemes["model.embed_tokens.weight"].bits // 8
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutOfResources(
            f"optimum takes {needed / 1e6:,.0f} MB of disk on the way, and {free / 1e6:,.0f} MB are free",
            hint="free some space, choose a folder on another disk with --out, or build with --exporter edgeforge",
        )


def _write_checkpoint(plan: BuildPlan, checkpoint: Checkpoint, directory: Path) -> None:
    """config.json and model.safetensors in the scheme's precision, a few rows in memory at a time."""
    scheme = plan.target.scheme
    config = hf_config(plan.architecture, dtype=TORCH[scheme])
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = [checkpoint.tensor(name) for name in checkpoint.names]
    layout = [(tensor.name, STORAGE[scheme], tensor.shape) for tensor in tensors]
    with write_safetensors(directory / "model.safetensors", layout, metadata={"format": "pt"}) as writer:
        for tensor in tensors:
            step = max(1, PIECE_ELEMENTS // math.prod(tensor.shape[1:]))
            for start in range(0, tensor.shape[0], step):
                rows = tensor.rows(start, min(start + step, tensor.shape[0]))
                try:
                    with np.errstate(over="raise"):
                        writer.write(tensor.name, start, rows)
                except FloatingPointError:
                    raise UnusableInput(
                        f"{tensor.name} holds a weight beyond float16's 65,504", hint="build with --scheme f32"
                    ) from None


def _run_optimum(source: Path, output: Path, dtype: str) -> None:
    """main_export in a fresh interpreter, without the network and without what lies in the working directory (-P)."""
    finished = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(source), str(output), dtype],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if finished.returncode == 0 and (output / GRAPH_FILE).is_file():
        return
    reason = next((line.strip() for line in reversed(finished.stderr.splitlines()) if line.strip()), "no reason given")
    if finished.returncode < 0:
        reason = f"the process was ended by signal {-finished.returncode}"
    if finished.returncode == -9 or "MemoryError" in reason or "No space left" in reason:
        raise OutOfResources(
            f"the export through optimum ran out of memory or disk: {reason}",
            hint="optimum holds the whole model several times over; --exporter edgeforge needs a fraction of it",
        )
    found = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    raise EdgeForgeError(
        f"optimum could not export the model: {reason} ({found})",
        hint="pip install --upgrade 'edgeforge[optimum]' brings versions that fit, or build with --exporter edgeforge",
    )
