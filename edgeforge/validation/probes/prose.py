"""Long English text without end: the paragraphs of the package's six texts, then again and again in other orders.

A paragraph that comes back can be copied by a model that still finds its first appearance thousands of tokens before:
the text asks for long-range attention, as short texts one after the other would not.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgeforge.validation.data import default_texts

SEED = 20_240_726


def paragraphs() -> Iterator[str]:
    """Endless; each ends with a blank line. The first round is in the texts' own order."""
    own = [part.strip("\n") + "\n\n" for text in default_texts() for part in text.split("\n\n") if part.strip()]
    yield from own
    for turn in range(1, 1 << 20):
        for place in np.random.default_rng((SEED, turn)).permutation(len(own)):
            yield own[place]


def long_ids(encode: Callable[[str], Sequence[int]], first: Sequence[int], count: int) -> list[int]:
    """`count` ids of that text, after those of `first` (a BOS, or nothing)."""
    ids = list(first)
    for paragraph in paragraphs():
        if len(ids) >= count:
            break
        ids += encode(paragraph)
    return ids[:count]
