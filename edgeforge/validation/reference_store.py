"""Answers on text, kept by content between runs: the reference's for every target, the candidate's to go on from.

A chunk's key is a hash of everything its answers follow from: the checkpoint's fingerprint, the token ids, which of
them are scored, what is kept of each (`top_k`) and FORMAT. A candidate's adds its manifest's hash and what ran it.
Files appear whole or not at all; one that cannot be read is as good as none, and a folder that cannot be written costs
the next run time, not this one its result.
"""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.model.hub import cache_folder
from edgeforge.validation import top_k
from edgeforge.validation.protocol import Chunks
from edgeforge.validation.statistics import TokenValues
from edgeforge.validation.top_k import Kept

FORMAT = 1  # goes up when what is kept, or the reference forward pass, changes
DIGEST_BYTES = 32


def root() -> Path:
    """Where `edgeforge cache` finds it."""
    return cache_folder() / "validation"


def reference_key(fingerprint: str, chunks: Chunks, chunk: int) -> str:
    """Names the reference's answers to one chunk."""
    facts = [FORMAT, fingerprint, chunks.first, chunks.context, top_k.TOP_K, top_k.DRAWN, top_k.SEED]
    ids = np.ascontiguousarray(chunks.ids[chunk], "<i8").tobytes()
    return hashlib.sha256(json.dumps(facts).encode() + b"\n" + ids).hexdigest()


def candidate_key(reference: str, manifest_sha256: str, engine: str) -> str:
    """Names a candidate's values on the chunk that `reference` names; `engine` is what ran it, and its version."""
    return hashlib.sha256(json.dumps([FORMAT, reference, manifest_sha256, engine]).encode()).hexdigest()


def read_reference(key: str) -> Kept | None:
    """None where there is none that can be read."""
    arrays = _read(_path("reference", key), ("top_k", "ids", "logits", "log_sum", "tail", "nll", "top"))
    if arrays is None:
        return None
    return Kept(
        top_k=int(arrays["top_k"]),
        ids=arrays["ids"].astype(np.uint32, copy=False),
        logits=arrays["logits"].astype(np.float32, copy=False),
        log_sum=arrays["log_sum"].astype(np.float64, copy=False),
        tail=arrays["tail"].astype(np.float64, copy=False),
        nll=arrays["nll"].astype(np.float64, copy=False),
        top=arrays["top"].astype(np.int64, copy=False),
    )


def write_reference(key: str, kept: Kept) -> None:
    arrays = {
        "top_k": np.array(kept.top_k),
        "ids": kept.ids,
        "logits": kept.logits,
        "log_sum": kept.log_sum,
        "tail": kept.tail,
        "nll": kept.nll,
        "top": kept.top,
    }
    _write(_path("reference", key), arrays)


def read_values(key: str) -> TokenValues | None:
    """None where there are none that can be read."""
    arrays = _read(_path("candidate", key), ("reference_nll", "candidate_nll", "kl_divergence", "same_top"))
    if arrays is None:
        return None
    return TokenValues(
        reference_nll=arrays["reference_nll"].astype(np.float64, copy=False),
        candidate_nll=arrays["candidate_nll"].astype(np.float64, copy=False),
        kl_divergence=arrays["kl_divergence"].astype(np.float64, copy=False),
        same_top=arrays["same_top"].astype(np.bool_, copy=False),
    )


def write_values(key: str, values: TokenValues) -> None:
    arrays = {
        "reference_nll": values.reference_nll,
        "candidate_nll": values.candidate_nll,
        "kl_divergence": values.kl_divergence,
        "same_top": values.same_top,
    }
    _write(_path("candidate", key), arrays)


def _path(kind: str, key: str) -> Path:
    return root() / kind / key[:2] / f"{key}.bin"


def _read(path: Path, names: tuple[str, ...]) -> Mapping[str, NDArray[np.generic]] | None:
    """The arrays of a file: the SHA-256 of what follows, then numpy's archive."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, archive = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(archive).digest() != digest:
        return None
    with np.load(io.BytesIO(archive), allow_pickle=False) as file:
        return {name: file[name] for name in names}


def _write(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:  # np.savez takes names as keywords only
        for name, array in arrays.items():
            with members.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    content = hashlib.sha256(archive.getvalue()).digest() + archive.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError:
        return
