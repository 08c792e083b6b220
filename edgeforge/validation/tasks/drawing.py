"""Which items are asked: a draw without replacement that is the same on every machine, and its name.

Items are ordered by the SHA-256 of seed and content, and the first ones are taken: no library's random numbers are in
it, and an item that is drawn among some stays drawn when the file loses others.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

Item = Mapping[str, object]


def draw(items: Sequence[Item], count: int | None, *, seed: int) -> list[int]:
    """The places of the drawn items, ascending; all of them where `count` is None or more than there are."""
    if count is None or count >= len(items):
        return list(range(len(items)))
    order = sorted(range(len(items)), key=lambda place: (_digest(f"{seed}\n{content(items[place])}"), place))
    return sorted(order[:count])


def name(items: Iterable[Item]) -> str:
    """SHA-256, in hexadecimal, of the items' contents in order."""
    return _digest("\n".join(content(item) for item in items))


def content(item: Item) -> str:
    """An item as one line of JSON."""
    return json.dumps(item, sort_keys=True, ensure_ascii=False, default=str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
