"""The sequences that codes are chosen on: drawn from the default set, or from what the user gave.

A text is cut into pieces of one length, and as many as wanted are drawn without putting back. Their order follows from
hashes, not from a generator of random numbers that another version of a library may change: same seed, same samples.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.pipeline.calibration_set import default_set
from edgeforge.pipeline.calibration_source import MOST_CHARACTERS, CalibrationTokens, spread, text_of
from edgeforge.validation.data import encode, start_token_id

Ids = NDArray[np.int64]

SAMPLES, LENGTH, SEED = 128, 512, 0
FEWEST = 16
"""Sequences. With fewer, the error is moved to inputs that the text never showed."""
TURNS = ("wiki", "c4", "technical", "code", "wiki", "c4", "technical", "multilingual")
"""Which text of the default set gives the next sample, over and over."""
CHARACTERS = 8
"""Of text for each token that is wanted: more than one takes in most languages."""


def read_samples(
    checkpoint: Checkpoint, source: Path | None, *, samples: int = SAMPLES, length: int = LENGTH, seed: int = SEED
) -> CalibrationTokens:
    """`samples` sequences of `length` tokens (or the model's longest), each after the model's BOS.

    `source`: as for `read_tokens`; None takes the default set. A text that is too short for all gives as many as it
    has. Raises UnusableInput where that is less than FEWEST, or there is no text; what `default_set` raises.
    """
    turns: Sequence[str] = TURNS
    if source is None:
        texts = {name.removesuffix(".utf8"): text for name, text in default_set().items()}
        special = False
    else:
        text, special = text_of(checkpoint, source)
        texts, turns = {"": text}, [""]
    tokenizer = checkpoint.tokenizer.load()
    start = start_token_id(checkpoint, tokenizer)
    size = min(length, checkpoint.architecture.max_position_embeddings) - (start is not None)
    most = max(MOST_CHARACTERS, samples * length * CHARACTERS)
    pieces = {
        name: _drawn(
            np.array(encode(tokenizer, spread(text, samples + 1, most), special=special), np.int64), size, seed
        )
        for name, text in texts.items()
    }
    found = _dealt([pieces[turn] for turn in turns], samples)
    if len(found) < min(FEWEST, samples):
        raise UnusableInput(
            f"the calibration text has {len(found) * size:,} tokens in whole sequences of {size}, and "
            f"{min(FEWEST, samples) * size:,} are needed",
            hint="give more text, or leave --calibration out for the default set",
        )
    ids = np.stack(found)
    if start is not None:
        ids = np.insert(ids, 0, start, axis=1)
    everything = hashlib.sha256("".join(texts.values()).encode()).hexdigest()
    return CalibrationTokens(ids=ids, text_sha256=everything, seed=seed)


def _drawn(tokens: Ids, size: int, seed: int) -> list[Ids]:
    """All pieces of `size` tokens, in the order of their lots."""
    lots = sorted(range(len(tokens) // size), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    return [tokens[i * size : (i + 1) * size] for i in lots]


def _dealt(turns: Sequence[list[Ids]], samples: int) -> list[Ids]:
    """One from each in turn, until there are enough or none is left. A list that takes two turns is dealt from once."""
    found: list[Ids] = []
    left = {id(pieces): iter(pieces) for pieces in turns}
    while left and len(found) < samples:
        for pieces in turns:
            if id(pieces) not in left or len(found) == samples:
                continue
            piece = next(left[id(pieces)], None)
            if piece is None:
                del left[id(pieces)]
            else:
                found.append(piece)
    return found
