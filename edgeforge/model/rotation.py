"""The same model with its residual stream turned: a view of a checkpoint (SliceGPT, arXiv 2401.15024, section 3.2).

    x' = x Q      what flows between layers, D channels wide; RMSNorm without a gain commutes with any orthogonal Q
    E' = E Q      the embedding writes it
    W' = W diag(g) Q      q, k, v, gate, up and lm_head read it, behind a norm whose gain g they take over (g' = 1)
    W' = Q^T W    o and down write it

The answers stay the same, at no cost when it runs; outliers are spread over all channels, which suits quantization.
Rows come one by one but for o and down, whose rows each need all others: one of those linears is kept in memory at a
time, in float32. A tied output head cannot stay tied, as it takes over a gain that the embedding must not have.
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeforge.model.checkpoint import Checkpoint, GenerationDefaults, LazyTensor, Source, StoredCodes, StoredGrid
from edgeforge.model.magnitude import largest
from edgeforge.model.orthogonal import Orthogonal, orthogonal

if TYPE_CHECKING:
    from edgeforge.model.architecture import LlamaArchitecture
    from edgeforge.model.tokenizer import TokenizerFiles

KIND = "randomized Hadamard"
SEED = 0
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BLOCK_ELEMENTS = 1 << 20  # read together

Floats = NDArray[np.float32]


def rotated(checkpoint: Checkpoint, seed: int = SEED) -> "RotatedCheckpoint":
    """`checkpoint` turned by the matrix that `seed` draws. Nothing is read before somebody asks for rows."""
    return RotatedCheckpoint(checkpoint, seed)


class RotatedCheckpoint:
    """A Checkpoint; `original` is the one that it turns. Tensors are float32 and lie on no grid."""

    def __init__(self, original: Checkpoint, seed: int) -> None:
        self.original = original
        self.architecture: LlamaArchitecture = replace(original.architecture, tie_word_embeddings=False)
        self._q = orthogonal(original.architecture.hidden_size, seed)
        self._seed = seed
        self._kept = _Kept()

    @property
    def config(self) -> Mapping[str, object]:
        return {**self.original.config, "tie_word_embeddings": False}

    @property
    def names(self) -> tuple[str, ...]:
        """In file order; an output head that was tied comes last."""
        names = self.original.names
        return names if HEAD in names else (*names, HEAD)

    @property
    def fingerprint(self) -> str:
        """Tells it from the original, and from its other rotations."""
        told = f"{self.original.fingerprint} turned by {KIND}, seed {self._seed}"
        return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"

    @property
    def document(self) -> dict[str, object]:
        """For the manifest: which matrix turned it, and whether that cost the tie to the output head."""
        return {"kind": KIND, "seed": self._seed, "unties_lm_head": self.original.architecture.tie_word_embeddings}

    @property
    def source(self) -> Source:
        return self.original.source

    @property
    def tokenizer(self) -> "TokenizerFiles":
        return self.original.tokenizer

    @property
    def generation(self) -> GenerationDefaults:
        return self.original.generation

    @property
    def notices(self) -> Mapping[str, bytes]:
        return self.original.notices

    def tensor(self, name: str) -> LazyTensor:
        """The tensor called `name`; KeyError where the architecture has none."""
        tied = name == HEAD and self.original.architecture.tie_word_embeddings
        tensor = self.original.tensor(EMBEDDING if tied else name)
        if name.endswith("norm.weight"):
            return RotatedTensor(name=name, tensor=tensor, turn=_ones)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return RotatedTensor(name=name, tensor=tensor, turn=_Writer(q=self._q, kept=self._kept))
        norm = _norm_before(name)
        gain = None if norm is None else self.original.tensor(norm)
        return RotatedTensor(name=name, tensor=tensor, turn=_Reader(q=self._q, gain=gain))


def _norm_before(name: str) -> str | None:
    """The norm whose output a linear is given; None of the embedding."""
    if name == EMBEDDING:
        return None
    if name == HEAD:
        return "model.norm.weight"
    layer, _, _ = name.rpartition(".self_attn.")
    if layer:
        return f"{layer}.input_layernorm.weight"
    return f"{name.rpartition('.mlp.')[0]}.post_attention_layernorm.weight"


class Turn(Protocol):
    """What becomes of rows [start, stop) of a tensor, float32. `again`: they will be asked for once more."""

    def __call__(self, tensor: LazyTensor, start: int, stop: int, *, again: bool) -> Floats: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RotatedTensor:
    """A LazyTensor: `tensor`, turned."""

    name: str
    tensor: LazyTensor
    turn: Turn

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def grid(self) -> StoredGrid | None:
        """None: sums of what lay on a grid lie on none."""
        return None

    def stored_codes(self, start: int, stop: int) -> StoredCodes | None:
        """None, as `grid` is."""
        return None

    def rows(self, start: int, stop: int) -> Floats:
        """float32 [stop - start, *shape[1:]], fresh and writable; from any thread."""
        return self.turn(self.tensor, start, stop, again=False)

    def announce(self, start: int, stop: int) -> None:
        self.tensor.announce(start, stop)

    def magnitude(self, start: int, stop: int) -> np.float32:
        """max |w| of the same rows; NaN or infinity where there is one."""
        return largest(self.turn(self.tensor, start, stop, again=True))


def _ones(tensor: LazyTensor, start: int, stop: int, *, again: bool) -> Floats:
    """A norm's gain, once the linears behind it have taken it over."""
    return np.ones(stop - start, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """W diag(g) Q, row by row; the embedding has no gain."""

    q: Orthogonal
    gain: LazyTensor | None

    def __call__(self, tensor: LazyTensor, start: int, stop: int, *, again: bool) -> Floats:
        rows = tensor.rows(start, stop)
        if self.gain is not None:
            rows *= self.gain.rows(0, self.gain.shape[0])
        self.q.turn_rows(rows)
        return rows


class _Kept:
    """The linear whose turned rows are in memory, until as many were taken as it has, or another is asked for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.name: str | None = None
        self.rows: Floats | None = None
        self.left = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """Q^T W, whose every row needs all of W's."""

    q: Orthogonal
    kept: _Kept

    def __call__(self, tensor: LazyTensor, start: int, stop: int, *, again: bool) -> Floats:
        kept = self.kept
        with kept.lock:
            if kept.rows is None or kept.name != tensor.name:
                kept.rows = None  # first, so that there are never two
                kept.rows, kept.name, kept.left = self._turned(tensor), tensor.name, tensor.shape[0]
            rows = kept.rows
            kept.left -= 0 if again else stop - start
            if kept.left <= 0:
                kept.rows = None
                if len(rows) == stop - start:
                    return rows  # nobody else has it
            return rows[start:stop].copy()

    def _turned(self, tensor: LazyTensor) -> Floats:
        w = np.empty(tensor.shape, np.float32)
        step = max(1, BLOCK_ELEMENTS // tensor.shape[1])
        for start in range(0, len(w), step):
            w[start : start + step] = tensor.rows(start, min(start + step, len(w)))
        self.q.turn_columns(w)
        return w
