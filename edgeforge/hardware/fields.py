"""Reading a table (TOML or JSON) field by field, with one sentence for what is wrong, naming the file and the key."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches

from edgeforge.errors import UnusableInput


class Fields:
    """A table being read; it remembers which keys were asked for, so that `finish` can refuse the rest."""

    def __init__(self, table: Mapping[str, object], where: str, prefix: str = "") -> None:
        self._table = table
        self._prefix = prefix
        self._asked: set[str] = set()
        self.where = where

    def text(self, key: str) -> str:
        value = self._value(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "a non-empty string", value)
        return value

    def optional_text(self, key: str) -> str | None:
        """None where the key is absent or null."""
        self._asked.add(key)
        return None if self._table.get(key) is None else self.text(key)

    def choice(self, key: str, words: Collection[str]) -> str:
        value = self.text(key)
        if value not in words:
            raise self._wrong(key, f"one of {', '.join(words)}", value)
        return value

    def integer(self, key: str, *, minimum: int, default: int | None = None) -> int:
        """Without a `default`, the key must be there."""
        self._asked.add(key)
        value = default if default is not None and key not in self._table else self._value(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self._wrong(key, f"a whole number, at least {minimum}", value)
        return value

    def number(self, key: str, *, above: float, below: float = float("inf"), default: float | None = None) -> float:
        """A number strictly between `above` and `below`. Without a `default`, the key must be there."""
        self._asked.add(key)
        value = default if default is not None and key not in self._table else self._value(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < min(below, 1 << 1023):
            limit = f" and below {below:g}" if below != float("inf") else ""
            raise self._wrong(key, f"a number above {above:g}{limit}", value)
        return float(value)

    def flag(self, key: str, *, default: bool | None = None) -> bool:
        """Without a `default`, the key must be there."""
        self._asked.add(key)
        value = default if default is not None and key not in self._table else self._value(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of strings", value)
        return tuple(value)

    def text_table(self, key: str) -> dict[str, str]:
        value = self._value(key)
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise self._wrong(key, "a table of strings", value)
        return dict(value)

    def table(self, key: str) -> "Fields":
        value = self._value(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "a table", value)
        return Fields(value, self.where, f"{self._prefix}{key}.")

    def raw(self, key: str) -> object:
        """Whatever the key holds, for keys of two shapes."""
        return self._value(key)

    def finish(self) -> None:
        """Refuse keys that nobody asked for."""
        for key in self._table:
            if key not in self._asked:
                near = get_close_matches(key, self._asked, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(sorted(self._asked))}"
                raise UnusableInput(f"{self.where}: unknown key '{self._prefix}{key}'", hint=hint)

    def refuse(self, sentence: str, *, hint: str | None = None) -> UnusableInput:
        """An error about this table that the caller raises."""
        return UnusableInput(f"{self.where}: {sentence}", hint=hint)

    def _value(self, key: str) -> object:
        self._asked.add(key)
        if key not in self._table:
            raise self.refuse(f"the key '{self._prefix}{key}' is missing")
        return self._table[key]

    def _wrong(self, key: str, expected: str, value: object) -> UnusableInput:
        return self.refuse(f"'{self._prefix}{key}' must be {expected}, not {value!r}")
