"""One model, three tools: how each makes a 4-bit model that runs on this machine's processor."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from processes import run_child, size_bytes

ROOT = Path(__file__).resolve().parents[2]
EDGEFORGE = [sys.executable, "-m", "edgeforge.cli"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Where the peers are. None: not here, and `missing` says what to do."""

    python: Path | None
    llama_cpp: Path | None
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build cost. `steps`: seconds and peak of each process, where there was more than one."""

    seconds: float
    peak_bytes: int
    output_bytes: int
    steps: str = ""


def find_peers() -> Peers:
    """EDGEFORGE_PEER_PYTHON and EDGEFORGE_LLAMA_CPP, else what ci/peers makes under .peers/."""
    python: Path | None = Path(os.environ.get("EDGEFORGE_PEER_PYTHON") or ROOT / ".peers" / "venv" / "bin" / "python")
    llama_cpp: Path | None = Path(os.environ.get("EDGEFORGE_LLAMA_CPP") or ROOT / ".peers" / "llama.cpp")
    missing = []
    if python is not None and not _imports_genai(python):
        python = None
        missing.append(
            "onnxruntime-genai: not here; run ci/peers, or set EDGEFORGE_PEER_PYTHON to a Python that has it"
        )
    needed = ("convert_hf_to_gguf.py", "build/bin/llama-quantize", "build/bin/llama-bench")
    if llama_cpp is not None and (python is None or not all((llama_cpp / name).is_file() for name in needed)):
        llama_cpp = None
        missing.append(
            f"llama.cpp: not here; run ci/peers, or set EDGEFORGE_LLAMA_CPP to a folder with {', '.join(needed)}"
        )
    return Peers(python=python, llama_cpp=llama_cpp, missing=tuple(missing))


def _imports_genai(python: Path) -> bool:
    if not python.is_file():
        return False
    command = [str(python), "-c", "import onnxruntime_genai, transformers, torch"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def edgeforge_build(model: str | Path, out: Path, *, threads: int, logs: Path, recipe: Sequence[str] = ()) -> Built:
    """`edgeforge build --target cpu --no-validate`, from nothing to the hashed bundle. `recipe`: further options."""
    shutil.rmtree(out, ignore_errors=True)
    command: list[str | Path] = [
        *EDGEFORGE,
        "build",
        "--target",
        "cpu",
        "--model",
        model,
        "--out",
        out,
        "--no-validate",
        "--quiet",
        *recipe,
    ]
    child = run_child([*command, "--threads", str(threads)], log=logs / "edgeforge.log", threads=threads)
    return Built(seconds=child.seconds, peak_bytes=child.peak_bytes, output_bytes=size_bytes(out))


def llama_cpp_build(peers: Peers, model: Path, out: Path, *, threads: int, logs: Path) -> Built:
    """convert_hf_to_gguf.py to bfloat16, the checkpoint's own type, then llama-quantize to Q4_0."""
    assert peers.python is not None
    assert peers.llama_cpp is not None
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = out.with_suffix(".bf16.gguf")
    convert: list[str | Path] = [peers.python, peers.llama_cpp / "convert_hf_to_gguf.py", model]
    quantize: list[str | Path] = [peers.llama_cpp / "build" / "bin" / "llama-quantize", whole, out]
    try:
        first = run_child(
            [*convert, "--outtype", "bf16", "--outfile", whole], log=logs / "llama-convert.log", threads=threads
        )
        second = run_child([*quantize, "Q4_0", str(threads)], log=logs / "llama-quantize.log", threads=threads)
    finally:
        whole.unlink(missing_ok=True)
    steps = " + ".join(f"{child.seconds:.1f} s, {child.peak_bytes / 1e9:.2f} GB" for child in (first, second))
    return Built(
        seconds=first.seconds + second.seconds,
        peak_bytes=max(first.peak_bytes, second.peak_bytes),
        output_bytes=size_bytes(out),
        steps=f"convert {steps}".replace(" + ", " + quantize "),
    )


def genai_build(peers: Peers, model: Path, out: Path, *, threads: int, logs: Path) -> Built:
    """onnxruntime-genai's model builder with its defaults: INT4, CPU."""
    assert peers.python is not None
    scratch = out.with_name(f"{out.name}.cache")
    shutil.rmtree(out, ignore_errors=True)
    builder: list[str | Path] = [peers.python, "-m", "onnxruntime_genai.models.builder"]
    try:
        child = run_child(
            [*builder, "-i", model, "-o", out, "-p", "int4", "-e", "cpu", "-c", scratch],
            log=logs / "genai-builder.log",
            threads=threads,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Built(seconds=child.seconds, peak_bytes=child.peak_bytes, output_bytes=size_bytes(out))
