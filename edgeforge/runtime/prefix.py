"""Keys and values of texts that were read or written, kept for others that begin alike: a tree of token segments."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .slots import shared_prefix

KeysValues = NDArray[np.generic]  # [2 layers, KV, tokens, head_dim]


class Segment:
    """Tokens that follow a parent's, with their keys and values; children differ in their first token."""

    __slots__ = ("children", "ids", "parent", "used", "values")

    def __init__(self, ids: tuple[int, ...], values: KeysValues, parent: "Segment | None") -> None:
        self.ids = ids
        self.values = values
        self.parent = parent
        self.children: dict[int, Segment] = {}
        self.used = 0


class PrefixTree:
    """At most `budget_bytes` of keys and values; beyond, the leaf that was not needed for longest goes first."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._root = Segment((), np.empty((0, 0, 0, 0), np.float32), None)
        self._clock = 0
        self.bytes = 0

    def find(self, ids: Sequence[int]) -> list[tuple[tuple[int, ...], KeysValues]]:
        """The longest known beginning of `ids`, piece by piece: tokens with their keys and values."""
        return [(node.ids[:count], node.values[:, :, :count]) for node, count in self._walk(ids)]

    def insert(self, ids: Sequence[int], read: Callable[[int, int], KeysValues]) -> None:
        """Keep `ids`; `read(start, stop)` gives the keys and values of those that are not known."""
        node, known = self._root, 0
        for node, count in self._walk(ids):
            known += count
            if count < len(node.ids) and known < len(ids):
                self._split(node, count)
        if known == len(ids) or not self._budget_bytes:
            return
        values = read(known, len(ids))
        if values.nbytes <= self._budget_bytes:
            child = node.children[ids[known]] = Segment(tuple(ids[known:]), values, node)
            child.used = self._clock
            self.bytes += values.nbytes
            self._shrink()

    def _walk(self, ids: Sequence[int]) -> Iterator[tuple[Segment, int]]:
        """The segments along `ids`, and how many tokens of each agree; they count as used now."""
        self._clock += 1
        node, known = self._root, 0
        while known < len(ids) and ids[known] in node.children:
            node = node.children[ids[known]]
            node.used = self._clock
            count = shared_prefix(node.ids, ids[known : known + len(node.ids)])
            yield node, count
            if count < len(node.ids):
                return
            known += count

    def _split(self, node: Segment, count: int) -> None:
        """The segment keeps its first `count` tokens; the others become its child."""
        rest = Segment(node.ids[count:], node.values[:, :, count:].copy(), node)
        rest.children, rest.used = node.children, node.used - 1
        for child in rest.children.values():
            child.parent = rest
        node.ids, node.values = node.ids[:count], node.values[:, :, :count].copy()
        node.children = {rest.ids[0]: rest}

    def _shrink(self) -> None:
        while self.bytes > self._budget_bytes:
            oldest = min(self._leaves(), key=lambda leaf: leaf.used)
            assert oldest.parent is not None
            del oldest.parent.children[oldest.ids[0]]
            self.bytes -= oldest.values.nbytes

    def _leaves(self) -> Iterator[Segment]:
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            nodes.extend(node.children.values())
            if not node.children and node is not self._root:
                yield node
