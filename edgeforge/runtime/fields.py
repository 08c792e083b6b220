"""Strict reading of a JSON object: every value is asked for by name and type, and what nobody asked for is an error."""

from collections.abc import Mapping
from typing import TypeVar

from .errors import UnusableBundle

T = TypeVar("T", str, int, bool, float)

_WORDS = {str: "a string", int: "an integer", bool: "true or false", float: "a number", dict: "an object"}


class Fields:
    """One JSON object on its way into a dataclass. Errors name the file and the dotted field."""

    def __init__(self, value: object, *, file: str, path: str = "") -> None:
        self._file = file
        self._path = path
        if not isinstance(value, dict):
            raise UnusableBundle(f"{file}: {path or 'the file'} is not a JSON object")
        self._values: dict[str, object] = value
        self._asked: set[str] = set()

    def take(self, name: str, kind: type[T]) -> T:
        """The value of a required field."""
        return self._typed(self._get(name), name, kind)

    def optional(self, name: str, kind: type[T], *, required: bool = True) -> T | None:
        """The value of a field that may be null; unless `required`, it may also not be there at all."""
        value = self._get(name) if required or name in self._values else None
        return None if value is None else self._typed(value, name, kind)

    def count(self, name: str) -> int:
        """A required integer of at least 1."""
        value = self.take(name, int)
        if value < 1:
            raise self.wrong(name, "must be at least 1")
        return value

    def word(self, name: str, words: tuple[str, ...]) -> str:
        """A required string that is one of `words`."""
        value = self.take(name, str)
        if value not in words:
            raise self.wrong(name, f"is {value!r}, not one of {', '.join(words)}")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        value = self._get(name)
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self.wrong(name, "must be a list of integers")
        return tuple(value)

    def child(self, name: str) -> "Fields":
        return Fields(self.mapping(name), file=self._file, path=self._name(name))

    def children(self, name: str) -> "list[Fields]":
        """A list of objects."""
        value = self._get(name)
        if not isinstance(value, list):
            raise self.wrong(name, "must be a list")
        return [Fields(item, file=self._file, path=f"{self._name(name)}[{i}]") for i, item in enumerate(value)]

    def optional_child(self, name: str) -> "Fields | None":
        """An object that may be null, or not there at all."""
        if self._values.get(name) is None:
            self._asked.add(name)
            return None
        return self.child(name)

    def mapping(self, name: str) -> dict[str, object]:
        """An object that is carried as it stands."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, f"must be {_WORDS[dict]}")
        return value

    def texts(self, name: str) -> Mapping[str, str]:
        """An object whose values are all strings."""
        child = self.child(name)
        return {key: child.take(key, str) for key in child.names()}

    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def close(self) -> None:
        """Call when every known field was read."""
        for name in self._values:
            if name not in self._asked:
                raise self.wrong(name, "is not a field that this version knows")

    def wrong(self, name: str, what: str) -> UnusableBundle:
        return UnusableBundle(f"{self._file}: {self._name(name)} {what}")

    def _name(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _get(self, name: str) -> object:
        if name not in self._values:
            raise self.wrong(name, "is missing")
        self._asked.add(name)
        return self._values[name]

    def _typed(self, value: object, name: str, kind: type[T]) -> T:
        # type() and not isinstance(): to Python true is an int, to a manifest it is not.
        if type(value) is kind or (kind is float and type(value) is int and abs(value) < 1 << 1023):
            return kind(value)
        raise self.wrong(name, f"must be {_WORDS[kind]}, not {value!r}"[:200])
