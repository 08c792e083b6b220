"""Between ids and text: an incremental detokenizer, and a filter for stop strings."""

from collections.abc import Callable, Collection, Sequence

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns ids into text one at a time; the pieces joined are what decoding all ids at once gives.

    A character may span several tokens, and a decoder may treat the first token of a text differently (SentencePiece
    drops its space). So each piece is the difference between decoding a window with and without the new token. The
    window starts at the last place where a character surely ended, one piece back. `skip` are special ids, which have
    no text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], skip: Collection[int] = ()) -> None:
        self._decode = decode
        self._skip = skip
        self._window: list[int] = []
        self._context = 0  # how many ids at the window's start were emitted before
        self._emitted = ""  # what of the window's text was emitted

    def push(self, token: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        if token in self._skip:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        # An unfinished character decodes to U+FFFD at the end; more bytes may still change it.
        certain = text.rstrip(REPLACEMENT)
        piece = certain[len(self._emitted) :]
        if certain != text:
            self._emitted += piece
        elif piece:
            del self._window[: self._context]
            self._context = len(self._window)
            self._emitted = self._decode(self._window)
        return piece

    def flush(self) -> str:
        """What is left when no more ids come: bytes that never became a character, as U+FFFD."""
        piece = self._decode(self._window)[len(self._emitted) :]
        self._window, self._context, self._emitted = [], 0, ""
        return piece


class StopFilter:
    """Lets text through up to the first stop string; holds back what could be the start of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(string for string in stop if string)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be shown; after a stop string nothing more."""
        if self.stopped or not self._stop:
            return "" if self.stopped else text
        text = self._held + text
        starts = [start for string in self._stop if (start := text.find(string)) >= 0]
        if starts:
            self.stopped, self._held = True, ""
            return text[: min(starts)]
        held = max(_overlap(text, string) for string in self._stop)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """How many characters at the text's end are the string's beginning."""
    for count in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:count]):
            return count
    return 0
