"""llama.cpp's types on the same model and tokens, by its own programs: convert, imatrix, quantize, perplexity.

*As run* is llama-perplexity on the quantized file; *weights alone* is the same on that file dequantized to float32.
The size is the whole file.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from builds import ROOT
from fidelity_subjects import CONTEXT, Subject, calibration_text, write_once
from processes import Child, run_child

from edgeforge.validation.statistics import Estimate, Summary

IMATRIX_TEXTS = ("wiki", "c4", "code")
IMATRIX_CHUNKS = 20  # of each text
PROGRAMS = ("llama-perplexity", "llama-quantize", "llama-imatrix")
NUMBER = r"\s*:?\s*(-?[\d.]+) ±\s*([\d.]+)"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFile:
    """A GGUF file of one type."""

    bytes: int
    seconds: float
    peak_bytes: int
    as_run: Summary
    weights_alone: Summary | None


def find_llama_cpp() -> Path | None:
    """EDGEFORGE_LLAMA_CPP, else what ci/peers makes; None where a program is missing."""
    folder = Path(os.environ.get("EDGEFORGE_LLAMA_CPP") or ROOT / ".peers" / "llama.cpp")
    needed = [folder / "convert_hf_to_gguf.py", *(folder / "build" / "bin" / name for name in PROGRAMS)]
    return folder if all(file.is_file() for file in needed) else None


def find_converter_python() -> Path | None:
    """A Python with what convert_hf_to_gguf.py imports: the peers' own, or the one that runs this."""
    named = os.environ.get("EDGEFORGE_PEER_PYTHON") or ROOT / ".peers" / "venv" / "bin" / "python"
    for python in (Path(named), Path(sys.executable)):
        command = [str(python), "-c", "import torch, transformers, gguf, sentencepiece"]
        if python.is_file() and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return python
    return None


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """llama.cpp at work on one subject; what types share is made once and kept in the subject's folder."""

    folder: Path
    python: Path
    subject: Subject
    threads: int

    def measure(self, type_name: str, *, imatrix: bool, alone: bool = True) -> MeasuredFile:
        """Quantize to one of llama-quantize's types and measure (`alone`: dequantized as well); no file is kept."""
        name = f"{type_name}{'-imatrix' if imatrix else ''}"
        file = self.subject.folder / f"{name}.gguf"
        base = self._base
        importances: list[str | Path] = ["--imatrix", self._imatrix] if imatrix else []
        child = self._run("llama-quantize", [*importances, self._whole, file, type_name, str(self.threads)], name)
        measured = MeasuredFile(
            bytes=file.stat().st_size,
            seconds=child.seconds,
            peak_bytes=child.peak_bytes,
            as_run=self._compare(file, base, name),
            weights_alone=self._dequantized(file, base, f"{name}-f32") if alone else None,
        )
        file.unlink()
        return measured

    def _dequantized(self, file: Path, base: Path, name: str) -> Summary:
        whole = self.subject.folder / f"{name}.gguf"
        self._run("llama-quantize", ["--allow-requantize", file, whole, "F32", str(self.threads)], name)
        summary = self._compare(whole, base, name)
        whole.unlink()
        return summary

    @cached_property
    def _whole(self) -> Path:
        """The model in float32, as llama.cpp stores it."""
        file = self.subject.folder / "llama.cpp-f32.gguf"
        if not file.is_file():
            partial = file.with_suffix(".partial.gguf")
            convert: list[str | Path] = [self.python, self.folder / "convert_hf_to_gguf.py", self.subject.model]
            run_child(
                [*convert, "--outtype", "f32", "--outfile", partial], log=self._log("convert"), threads=self.threads
            )
            partial.rename(file)
        return file

    @cached_property
    def _imatrix(self) -> Path:
        """Importances from the shared calibration texts."""
        text = self.subject.folder / "imatrix.txt"
        write_once(text, lambda: self._imatrix_text().encode())
        file = self.subject.folder / "imatrix.gguf"
        if not file.is_file():
            partial = file.with_suffix(".partial.gguf")
            options: list[str | Path] = ["-m", self._whole, "-f", text, "-o", partial]
            options += ["-c", str(CONTEXT), "-t", str(self.threads)]
            self._run("llama-imatrix", options, "imatrix")
            partial.rename(file)
        return file

    def _imatrix_text(self) -> str:
        tokenizer = self.subject.checkpoint.tokenizer.load()
        texts = []
        for name in IMATRIX_TEXTS:
            ids = tokenizer.encode(calibration_text(name), add_special_tokens=False).ids
            texts.append(str(tokenizer.decode(ids[: IMATRIX_CHUNKS * CONTEXT])))
        return "\n".join(texts)

    @cached_property
    def _base(self) -> Path:
        """The reference's log-probabilities, by llama.cpp itself in float32."""
        file = self.subject.folder / f"llama.cpp-{self.subject.chunks.count}.kld"
        if not file.is_file():
            partial = file.with_suffix(".partial")
            self._run(
                "llama-perplexity", [*self._scoring(self._whole), "--kl-divergence-base", partial], "perplexity-f32"
            )
            partial.rename(file)
        return file

    def _compare(self, file: Path, base: Path, name: str) -> Summary:
        options: list[str | Path] = [*self._scoring(file), "--kl-divergence-base", base, "--kl-divergence"]
        self._run("llama-perplexity", options, f"{name}-perplexity")
        return _read_summary(self._log(f"{name}-perplexity").read_text(errors="replace"), self.subject)

    def _scoring(self, file: Path) -> list[str | Path]:
        chunks = str(self.subject.chunks.count)
        return ["-m", file, "-f", self.subject.text, "-c", str(CONTEXT), "--chunks", chunks, "-t", str(self.threads)]

    def _run(self, program: str, arguments: list[str | Path], name: str) -> Child:
        command = [self.folder / "build" / "bin" / program, *arguments]
        return run_child(command, log=self._log(name), threads=self.threads)

    def _log(self, name: str) -> Path:
        return self.subject.folder / "logs" / f"llama.cpp-{name}.log"


def _read_summary(log: str, subject: Subject) -> Summary:
    """What llama-perplexity --kl-divergence prints at its end."""

    def figure(label: str, scale: float = 1.0) -> Estimate:
        found = re.search(re.escape(label) + NUMBER, log)
        if found is None:
            raise RuntimeError(f"llama-perplexity printed no {label}:\n{log[-2000:]}")
        return Estimate(value=float(found[1]) * scale, standard_error=float(found[2]) * scale)

    return Summary(
        scored_tokens=subject.chunks.count * subject.chunks.scored_per_chunk,
        perplexity=figure("Mean PPL(Q)"),
        reference_perplexity=figure("Mean PPL(base)"),
        perplexity_ratio=figure("Mean PPL(Q)/PPL(base)"),
        mean_kl_divergence=figure("Mean    KLD"),
        same_top_token=figure("Same top p", 0.01),
    )
