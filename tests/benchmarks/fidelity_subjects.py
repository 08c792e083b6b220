"""What fidelity is measured on: a model, the tokens that are scored, and the reference's answers to them.

The reference runs once in float32 and what its last norm gives is kept; logits are made of that whenever they are
asked for. Everything lies in a folder of the benchmarks' cache.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from big_model import appearing, data_folder
from numpy.typing import NDArray
from shuffle import shuffled

from edgeforge.model.architecture import hf_config
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.model.forward import final_hidden, lm_head_logits
from edgeforge.model.safetensors_writer import write_safetensors
from edgeforge.validation.compare import LogitsOfChunk, compare
from edgeforge.validation.data import concatenate, encode_plain, start_token_id
from edgeforge.validation.protocol import Chunks, Protocol, make_chunks
from edgeforge.validation.statistics import Summary, summarize

CONTEXT = 512
STORIES_CHARACTERS = 40_000
GROUP = 8  # chunks that the reference reads at once


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model and the tokens it is asked about; `folder` holds what is made of them."""

    folder: Path
    model: Path
    text: Path
    protocol: Protocol
    limit: int | None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(str(self.model))

    @cached_property
    def chunks(self) -> Chunks:
        tokenizer = self.checkpoint.tokenizer.load()
        # As `edgeforge validate --data` and llama-perplexity --file read it: the last line break is dropped.
        ids = encode_plain(tokenizer, concatenate([self.text.read_text(encoding="utf-8")]))
        bos = start_token_id(self.checkpoint, tokenizer)
        return make_chunks(ids, protocol=self.protocol, context=CONTEXT, bos_token_id=bos, limit=self.limit)

    def compare(self, candidate: LogitsOfChunk) -> Summary:
        """The candidate's averages over all scored tokens, beside the reference."""
        hidden = self._hidden

        def reference(chunk: int) -> NDArray[np.float32]:
            return lm_head_logits(self.checkpoint, hidden[chunk])

        return summarize(compare(self.chunks, reference, candidate, lambda chunk: None))

    @cached_property
    def _hidden(self) -> NDArray[np.float32]:
        """float32 [C, S, D], kept in a file for the next run."""
        file = self.folder / f"reference-{self.chunks.count}.npy"
        if not file.is_file():
            groups = [
                final_hidden(self.checkpoint, self.chunks.ids[start : start + GROUP])[:, self.chunks.positions]
                for start in range(0, self.chunks.count, GROUP)
            ]
            partial = file.with_suffix(".partial.npy")
            np.save(partial, np.concatenate(groups))
            partial.replace(file)
        whole: NDArray[np.float32] = np.load(file)
        return whole


def shuffled_demo(cache: Path, seed: int, chunks: int) -> Subject:
    """The demo, dequantized and shuffled, on the first chunks of WikiText-2's raw test text."""
    folder = cache / f"demo-shuffled-{seed}"
    if not (folder / "model").exists():
        with appearing(folder / "model") as partial:
            _write_shuffled(partial, seed)
    text = cache / "wikitext2_test.raw"
    write_once(text, lambda: _unpacked("benchmarks/wikitext2_test.raw.gz"))
    return Subject(folder=folder, model=folder / "model", text=text, protocol="llama.cpp", limit=chunks)


def stories(cache: Path) -> Subject:
    """stories260k, which never was quantized, on the text that its published perplexity is of."""
    folder = cache / "stories260k"
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "tiny.txt"
    write_once(text, lambda: calibration_text("tiny")[:STORIES_CHARACTERS].encode())
    model = data_folder() / "models" / "stories260k"
    return Subject(folder=folder, model=model, text=text, protocol="windows", limit=None)


def calibration_text(name: str) -> str:
    """One of the texts of the shared calibration set, which WikiText-2's test is no part of."""
    return _unpacked(f"calibration/{name}.txt.gz").decode("utf-8")


def stories_calibration_text() -> str:
    """What follows the text that is scored."""
    return calibration_text("tiny")[STORIES_CHARACTERS:]


def _unpacked(name: str) -> bytes:
    return gzip.decompress((data_folder() / name).read_bytes())


def write_once(path: Path, content: Callable[[], bytes]) -> None:
    """A file that appears complete."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path, folder=False) as partial:
            partial.write_bytes(content())


def _write_shuffled(folder: Path, seed: int) -> None:
    checkpoint = open_checkpoint("demo")
    for name, content in checkpoint.tokenizer.files.items():
        (folder / name).write_bytes(content)
    config = hf_config(checkpoint.architecture, dtype="float32")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def whole(name: str) -> NDArray[np.float32]:
        tensor = checkpoint.tensor(name)
        return tensor.rows(0, tensor.shape[0])

    tensors = shuffled(checkpoint.architecture, whole, checkpoint.names, seed)
    rows = [(name, "F32", values.shape) for name, values in tensors.items()]
    with write_safetensors(folder / "model.safetensors", rows, metadata={"format": "pt"}) as writer:
        for name, values in tensors.items():
            writer.write(name, 0, values)
