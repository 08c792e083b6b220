"""The tokens that calibration reads: of the package's own text, or of a file that the user names.

The own text (calibration_text, Apache-2.0) shares nothing with the one that validation scores.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.model.tokenizer import TokenizerFiles
from edgeforge.runtime import BundleError
from edgeforge.runtime.chat import render
from edgeforge.validation.data import concatenate, encode, load_texts, read_text, start_token_id

SEQUENCES, LENGTH = 4, 512
MOST_CHARACTERS = 1 << 20
"""Of a longer text as many parts are read as there are sequences, from all over it."""
ROW_SUFFIXES = (".jsonl", ".jsonl.gz")
SOME_DAY = datetime(2024, 7, 26)
"""What a chat template that writes the date is told, so that a build is the same tomorrow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTokens:
    """ids int64 [B, T], sequences that the model reads each for itself; the text's hash covers all of it.

    `seed`: what they were drawn with, where they were drawn.
    """

    ids: NDArray[np.int64]
    text_sha256: str
    seed: int | None = None


def read_tokens(checkpoint: Checkpoint, source: Path | None) -> CalibrationTokens:
    """SEQUENCES pieces of LENGTH tokens (or the model's longest), evenly spread over the text, each after a BOS.

    `source`: a text file or a folder of them, or JSON Lines with "text" or "messages", which the model's chat template
    renders. Raises UnusableInput where there is too little text, or none.
    """
    text, special = (concatenate(default_texts()), False) if source is None else text_of(checkpoint, source)
    tokenizer = checkpoint.tokenizer.load()
    tokens = np.array(encode(tokenizer, spread(text, SEQUENCES, MOST_CHARACTERS), special=special), np.int64)
    length = min(LENGTH, checkpoint.architecture.max_position_embeddings)
    start = start_token_id(checkpoint, tokenizer)
    size = length - (start is not None)
    if len(tokens) < SEQUENCES * size:
        raise UnusableInput(
            f"the calibration text has {len(tokens):,} tokens and {SEQUENCES * size:,} are needed",
            hint="give more text, or leave --calibration out for the built-in one",
        )
    places = np.linspace(0, len(tokens) - size, SEQUENCES).astype(np.int64)
    ids = tokens[places[:, None] + np.arange(size)]
    if start is not None:
        ids = np.insert(ids, 0, start, axis=1)
    return CalibrationTokens(ids=ids, text_sha256=hashlib.sha256(text.encode()).hexdigest())


def text_of(checkpoint: Checkpoint, source: Path) -> tuple[str, bool]:
    """All text of what `--calibration` named, and whether special tokens in it are the model's own."""
    if source.name.endswith(ROW_SUFFIXES):
        return concatenate(_rows(source, checkpoint.tokenizer)), True
    return concatenate(load_texts(source, "--calibration")), False


def default_texts() -> tuple[str, ...]:
    """The package's own texts, by file name: prose, dialogue, code, languages; 2,700 tokens of Llama 3."""
    folder = resources.files("edgeforge.pipeline") / "calibration_text"
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".txt")), key=lambda item: item.name)
    return tuple(item.read_text(encoding="utf-8") for item in files)


def spread(text: str, parts: int, most: int) -> str:
    """The text, or `parts` (at least two) pieces from all over it where it has more than `most` characters."""
    if len(text) <= most:
        return text
    size = most // parts
    starts = (i * (len(text) - size) // (parts - 1) for i in range(parts))
    return "\n".join(text[start : start + size] for start in starts)


def _rows(path: Path, files: TokenizerFiles) -> Sequence[str]:
    """The texts of a JSON Lines file; special tokens in them are the model's own."""
    lines = read_text(path).splitlines()
    return list(_texts_of_rows(lines, path, files))


def _texts_of_rows(lines: Sequence[str], path: Path, files: TokenizerFiles) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        text = row.get("text") if isinstance(row, dict) else None
        messages = row.get("messages") if isinstance(row, dict) else None
        if isinstance(text, str):
            yield text
        elif isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
            yield _rendered(messages, f"{path}, line {number}", files)
        else:
            raise UnusableInput(
                f'{path}, line {number} is no JSON object with a "text" or with "messages"',
                hint='write one a line: {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}',
            )


def _rendered(messages: Sequence[dict[str, object]], where: str, files: TokenizerFiles) -> str:
    if files.chat_template is None:
        raise UnusableInput(
            f'{where} holds "messages", and the model has no chat template', hint='give rows with a "text" instead'
        )
    try:
        return render(
            files.chat_template,
            messages,
            bos_token=files.bos_token,
            eos_token=files.eos_token,
            add_generation_prompt=False,
            now=SOME_DAY,
        )
    except BundleError as error:
        raise UnusableInput(f"{where}: {error}", hint="correct the messages, or give plain text") from None
