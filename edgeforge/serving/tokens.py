"""One token by itself, as log-probabilities tell it: its text, and its bytes where they are no whole character."""

from collections.abc import Mapping
from functools import cache

from edgeforge.runtime.model import Model
from edgeforge.runtime.text import REPLACEMENT

ANCHOR = "a"


class TokenTexts:
    """Texts of a model's tokens."""

    def __init__(self, model: Model) -> None:
        self._model = model
        # A decoder may strip the first token's space, so that a token is decoded behind another one.
        self._anchor = model.encode(ANCHOR, add_special_tokens=False)[-1:]
        self._anchor_text = model.tokenizer.decode(self._anchor, skip_special_tokens=False)

    def text(self, id: int) -> str:
        """As it stands in an answer; U+FFFD for bytes that are no whole character."""
        together = self._model.tokenizer.decode([*self._anchor, id], skip_special_tokens=False)
        return str(together[len(self._anchor_text) :])

    def bytes(self, id: int) -> list[int] | None:
        """None where the tokenizer does not say."""
        text = self.text(id)
        if REPLACEMENT not in text:
            return list(text.encode())
        piece = self._model.tokenizer.id_to_token(id)
        if piece is None:
            return None
        if len(piece) == 6 and piece.startswith("<0x"):  # SentencePiece's byte fallback
            return [int(piece[3:5], 16)]
        alphabet = _byte_level_alphabet()
        return [alphabet[char] for char in piece] if all(char in alphabet for char in piece) else None


@cache
def _byte_level_alphabet() -> Mapping[str, int]:
    """Character -> byte, as GPT-2's bytes_to_unicode has it: printable bytes are themselves, the others 256 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
