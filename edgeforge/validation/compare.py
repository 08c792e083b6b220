"""The comparison itself: both models read the same tokens, and every scored token is weighed.

The reference runs in float32 from the checkpoint, a block of weights in memory at a time, over as many chunks at once
as WORKING_BYTES allow (the more at once, the fewer times the weights are read). So does a candidate whose engine is
not there. Logits exist for one chunk at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import GateFailed, OutOfResources, UnusableInput
from edgeforge.model.checkpoint import Weights
from edgeforge.model.forward import Tap, final_hidden, lm_head_logits, untouched
from edgeforge.validation import reference_store
from edgeforge.validation.protocol import Chunks
from edgeforge.validation.statistics import NonFiniteLogitsError, TokenValues, compare_logits, join
from edgeforge.validation.top_k import Kept, compare_kept, keep

LogitsOfChunk = Callable[[int], NDArray[np.float32]]  # chunk number -> the scored positions' logits [S, V]
Progress = Callable[[int, int], None]  # steps done, steps in all

WORKING_BYTES = 384 << 20  # activations of a forward pass


def compare(
    chunks: Chunks, reference: LogitsOfChunk, candidate: LogitsOfChunk, chunk_done: Callable[[int], None]
) -> TokenValues:
    """Per-token values of all chunks, in order; `chunk_done` gets their number.

    Logits that are not finite raise GateFailed (the candidate's) or UnusableInput (the reference's).
    """
    parts = []
    for chunk in range(chunks.count):
        try:
            parts.append(compare_logits(reference(chunk), candidate(chunk), chunks.targets(chunk)))
        except NonFiniteLogitsError as error:
            raise _not_finite(error, chunk, chunks) from None
        chunk_done(chunk + 1)
    return join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What earlier runs left of a comparison: the keys of all chunks, and the values of those that are done.

    `missing`: chunks without values, in order; `unread`: those of them that the reference has not answered either.
    """

    reference_keys: Sequence[str]
    candidate_keys: Sequence[str]
    values: Mapping[int, TokenValues]
    missing: Sequence[int]
    unread: Sequence[int]


def look_up(chunks: Chunks, *, fingerprint: str, manifest_sha256: str, engine: str) -> Known:
    """What is known of this text, reference and candidate; `engine` is what runs the candidate, and its version."""
    references = [reference_store.reference_key(fingerprint, chunks, chunk) for chunk in range(chunks.count)]
    candidates = [reference_store.candidate_key(key, manifest_sha256, engine) for key in references]
    found = {chunk: reference_store.read_values(key) for chunk, key in enumerate(candidates)}
    size = chunks.scored_per_chunk
    values = {chunk: value for chunk, value in found.items() if value is not None and len(value) == size}
    missing = [chunk for chunk in range(chunks.count) if chunk not in values]
    unread = [chunk for chunk in missing if reference_store.read_reference(references[chunk]) is None]
    return Known(reference_keys=references, candidate_keys=candidates, values=values, missing=missing, unread=unread)


def part_of(chunks: Chunks, wanted: Sequence[int]) -> Chunks:
    """Some of the chunks."""
    return replace(chunks, ids=chunks.ids[list(wanted)])


def compare_known(
    chunks: Chunks,
    known: Known,
    reference: LogitsOfChunk,
    candidate: LogitsOfChunk,
    chunk_done: Callable[[int], None],
) -> TokenValues:
    """Per-token values of all chunks, in order, by way of what is kept of the reference (`top_k`).

    `reference` answers for `known.unread`, `candidate` for `known.missing`, by their places in these. Each chunk is
    stored as soon as it is done. Raises as `compare` does.
    """
    places = {chunk: place for place, chunk in enumerate(known.unread)}
    values = dict(known.values)
    for done in range(len(values)):
        chunk_done(done + 1)
    for place, chunk in enumerate(known.missing):
        targets = chunks.targets(chunk)
        try:
            kept = _kept(known.reference_keys[chunk], targets, places.get(chunk), reference)
            values[chunk] = compare_kept(kept, candidate(place), targets)
        except NonFiniteLogitsError as error:
            raise _not_finite(error, chunk, chunks) from None
        reference_store.write_values(known.candidate_keys[chunk], values[chunk])
        chunk_done(len(values))
    return join([values[chunk] for chunk in range(chunks.count)])


def _kept(key: str, targets: NDArray[np.int64], place: int | None, reference: LogitsOfChunk) -> Kept:
    if place is None:
        stored = reference_store.read_reference(key)
        if stored is None:
            raise OutOfResources(
                "the reference's stored answers went away while they were used", hint="run the validation again"
            )
        return stored
    kept = keep(reference(place), targets)
    reference_store.write_reference(key, kept)
    return kept


def _not_finite(error: NonFiniteLogitsError, chunk: int, chunks: Chunks) -> GateFailed | UnusableInput:
    place = f"chunk {chunk + 1}, position {chunks.first + error.row}"
    if error.who == "candidate":
        return GateFailed(
            f"the bundle's logits are not finite ({place}): its activations overflow",
            hint="build it with 32-bit activations, or another scheme",
        )
    return UnusableInput(
        f"the original's own logits are not finite ({place})", hint="the checkpoint is damaged; fetch it again"
    )


@dataclass(slots=True, kw_only=True)
class ForwardLogits:
    """The reference forward pass's logits, chunk by chunk in order; hidden states come for a group of chunks at a time.

    `tap`: what replaces activations on their way, for a candidate.
    """

    weights: Weights
    chunks: Chunks
    progress: Progress  # (layers done, layers in all), over all groups
    tap: Tap = untouched
    _group: int = -1
    _hidden: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))

    @property
    def group_size(self) -> int:
        """Chunks that the forward pass takes at once."""
        architecture = self.weights.architecture
        # per token: the residual stream, its norm, queries and attention's answer; gate and up of the MLP
        values = 4 * architecture.hidden_size + 2 * architecture.intermediate_size
        return min(self.chunks.count, max(1, WORKING_BYTES // (4 * values * self.chunks.context)))

    @property
    def groups(self) -> int:
        """How many times the weights are read."""
        return -(-self.chunks.count // self.group_size)

    @property
    def steps(self) -> int:
        """Layers in all."""
        return self.groups * self.weights.architecture.num_hidden_layers

    def __call__(self, chunk: int) -> NDArray[np.float32]:
        group, place = divmod(chunk, self.group_size)
        if group != self._group:
            self._hidden = self._read_group(group)
            self._group = group
        return lm_head_logits(self.weights, self._hidden[place])

    def _read_group(self, group: int) -> NDArray[np.float32]:
        def layer_done(done: int, total: int) -> None:
            self.progress(group * total + done, self.groups * total)

        self._hidden = self._hidden[:0]  # let the old group go before the next one comes
        ids = self.chunks.ids[group * self.group_size : (group + 1) * self.group_size]
        hidden = final_hidden(self.weights, ids, progress=layer_done, tap=self.tap)
        return np.ascontiguousarray(hidden[:, self.chunks.positions])
