"""JSON that is complete when its tokens run out.

A small model can lose itself in a string or a list, and JSON that was cut off is none. So where an answer comes near
its limit, a short end that its form allows takes over: strings are closed, lists and objects too, and what is still
required is filled with what is shortest. Up to then nothing changes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .guidance import Guide

CLOSERS = '}]",:0123456789'  # outside strings, in the order that ends soonest
FILLERS = "a210A@.-/: _T+Z"  # what patterns and formats of strings are mostly made of; no year is 0000
MARGIN_TOKENS = 32  # by how much one more token may lengthen the end, so that it still fits
LONGEST_END_TOKENS = 1024
# How far, and how broadly, the search for a string's end goes at a time: each step costs a mask.
SEARCH_DEPTH = 64
SEARCH_WIDTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in JSON a text ends."""

    in_string: bool = False
    escaped: bool = False

    def after(self, text: bytes) -> "Place":
        in_string, escaped = self.in_string, self.escaped
        for byte in text:
            if escaped:
                escaped = False
            elif byte == ord('"'):
                in_string = not in_string
            else:
                escaped = in_string and byte == ord("\\")
        return Place(in_string=in_string, escaped=escaped)


class EndingGuide:
    """A guide to JSON of at most `max_tokens`. Satisfies `constraint.Constraint`."""

    def __init__(self, guide: Guide, max_tokens: int) -> None:
        self._guide = guide
        self._place = Place()
        self._left = max_tokens
        self._look_at = max_tokens
        self._end: list[int] = []  # from when on it is followed
        # What opens in a list is hardly longer than the whole without its lists.
        longest = max(MARGIN_TOKENS, len(short_end(guide, self._place) or ()))
        self._margin = min(longest, max_tokens // 4)

    def mask(self) -> NDArray[np.bool_]:
        """bool [V]: the guide's, or the one token that the short end has here."""
        if not self._end and self._left <= self._look_at:
            self._look()
        if not self._end:
            return self._guide.mask()
        only = np.zeros(self._guide.vocab_size, np.bool_)
        only[self._end[0]] = True
        return only

    def accept(self, token: int) -> None:
        """`token` was chosen; UnusableBundle where the mask did not allow it."""
        self._guide.accept(token)
        self._place = self._place.after(self._guide.bytes_of(token))
        self._left -= 1
        del self._end[:1]

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, so that nothing but end-of-text may follow."""
        return self._guide.finished

    def clone(self) -> "EndingGuide":
        """A guide of its own that stands where this one does."""
        copy = object.__new__(EndingGuide)
        copy._guide, copy._place, copy._end = self._guide.clone(), self._place, list(self._end)
        copy._left, copy._look_at, copy._margin = self._left, self._look_at, self._margin
        return copy

    def _look(self) -> None:
        """Take the short end where it is due, else say when to look again: that costs a mask for each of its tokens."""
        end = short_end(self._guide, self._place)
        if end is None:
            self._look_at = self._left // 2
            return
        end.append(self._guide.end_of_text)
        spare = self._left - self._margin - len(end)
        self._look_at = self._left - max(spare // 2, 1)
        if spare <= 0:
            self._end = end


def short_end(guide: Guide, place: Place) -> list[int] | None:
    """Few tokens that complete the JSON from where the guide stands; None where none were found."""
    ahead = guide.clone()
    end: list[int] = []
    while len(end) < LONGEST_END_TOKENS:
        allowed = ahead.mask()
        if ahead.may_end:
            return _spelled_shorter(guide, end)
        tokens = ahead.forced() or _next(ahead, allowed, place)
        for token in tokens:
            ahead.accept(token)
            place = place.after(ahead.bytes_of(token))
        end += tokens
    return None


def _spelled_shorter(guide: Guide, end: list[int]) -> list[int]:
    try:
        return guide.tokens_of(b"".join(map(guide.bytes_of, end)).decode())
    except UnicodeDecodeError:  # it begins within a character
        return end


def _next(guide: Guide, allowed: NDArray[np.bool_], place: Place) -> list[int]:
    if place.in_string and not place.escaped:
        return _string_end(guide)
    return [next(iter(_allowed_of(guide, CLOSERS, allowed)), int(allowed.argmax()))]


def _string_end(guide: Guide) -> list[int]:
    """The fewest characters up to a quote, or the first of them where it is far: breadth first, where two ways with the
    same mask count as one.
    """
    ways: list[tuple[list[int], Guide]] = [([], guide)]
    for _ in range(SEARCH_DEPTH):
        longer: dict[bytes, tuple[list[int], Guide]] = {}
        for path, at in ways:
            allowed = at.mask()
            if quote := _allowed_of(guide, '"', allowed):
                return path + quote
            for token in _allowed_of(guide, FILLERS, allowed) or [int(allowed.argmax())]:
                further = at.clone()
                further.accept(token)
                longer.setdefault(further.mask().tobytes(), ([*path, token], further))
        ways = list(longer.values())[:SEARCH_WIDTH]
    return ways[0][0]


def _allowed_of(guide: Guide, characters: str, allowed: NDArray[np.bool_]) -> list[int]:
    """Those of the characters that are one token, and allowed."""
    spelled = [guide.tokens_of(character) for character in characters]
    return [tokens[0] for tokens in spelled if len(tokens) == 1 and allowed[tokens[0]]]
