"""Which tokens a perplexity is computed on: two published protocols as plain data.

`llama.cpp` is tools/perplexity/perplexity.cpp (function `perplexity`, ppl_stride 0): the text is tokenized once (with
one BOS before it where the tokenizer adds one), cut into disjoint chunks of T tokens (a last incomplete one is
dropped), position 0 of *every* chunk is replaced by that BOS, and the logits of positions T/2 .. T-2 are scored
against the tokens T/2+1 .. T-1. It refuses texts of fewer than 2 T tokens, and so does this. `windows` puts BOS once
before the text, cuts it the same way and scores every position 0 .. T-2 of each window.

Shape letters: C chunks, T tokens of a chunk (the context), S scored tokens of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput, UsageError

Protocol = Literal["llama.cpp", "windows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """What both models read, and which of their answers count.

    ids int64 [C, T]; the logits of positions `first` .. T-2 are scored.
    """

    ids: NDArray[np.int64]
    first: int
    protocol: Protocol

    @property
    def count(self) -> int:
        """C"""
        return int(self.ids.shape[0])

    @property
    def context(self) -> int:
        """T"""
        return int(self.ids.shape[1])

    @property
    def scored_per_chunk(self) -> int:
        """S"""
        return self.context - 1 - self.first

    @property
    def positions(self) -> slice:
        """The positions of a chunk whose logits are scored."""
        return slice(self.first, self.context - 1)

    def targets(self, chunk: int) -> NDArray[np.int64]:
        """int64 [S]: the tokens that really came next."""
        return self.ids[chunk, self.first + 1 :]


def make_chunks(
    tokens: Sequence[int], *, protocol: Protocol, context: int, bos_token_id: int | None, limit: int | None = None
) -> Chunks:
    """Cut `tokens` (of the whole text, without any BOS) into scored chunks; at most `limit` of them.

    `bos_token_id` is None for a tokenizer that adds no BOS. Raises UsageError for a context or limit that makes no
    sense and UnusableInput when the text is too short.
    """
    if context < 4:
        raise UsageError(f"a context of {context} tokens leaves nothing to score", hint="use --context 512")
    if limit is not None and limit < 1:
        raise UsageError(f"asked for {limit} chunks, at least one is needed", hint="use --chunks 8, or leave it out")
    ids = np.array([*(() if bos_token_id is None else (bos_token_id,)), *tokens], np.int64)
    fewest = 2 * context if protocol == "llama.cpp" else context
    if len(ids) < fewest:
        raise UnusableInput(
            f"the text has {len(ids)} tokens; the {protocol} protocol with a context of {context} needs {fewest}",
            hint="give more text with --data, or a shorter --context",
        )
    count = len(ids) // context
    if limit is not None:
        count = min(count, limit)
    ids = ids[: count * context].reshape(count, context).copy()
    if protocol == "llama.cpp" and bos_token_id is not None:
        ids[:, 0] = bos_token_id
    return Chunks(ids=ids, first=context // 2 if protocol == "llama.cpp" else 0, protocol=protocol)
