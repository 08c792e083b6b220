"""Typed reading of JSON that other people wrote: every surprise is one sentence that names the file or the field."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from edgeforge.errors import UnusableInput

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in `path`; UnusableInput where it is missing, not JSON, not an object, or names a key twice."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UnusableInput(f"{path} does not exist") from None
    except OSError as error:
        raise UnusableInput(f"{path} cannot be read: {error.strerror}") from None
    return parse_json(raw, str(path))


def parse_json(raw: bytes, where: str) -> dict[str, object]:
    """The JSON object in `raw`; `where` names it in error messages."""
    try:
        value: object = json.loads(raw, object_pairs_hook=_distinct)
    except RecursionError:
        raise UnusableInput(f"{where} is nested too deeply to be a model's JSON") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError and a key that comes twice
        raise UnusableInput(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UnusableInput(f"{where} must hold a JSON object, not {_kind(value)}")
    check_text(raw, value, where)
    return value


def check_text(raw: bytes, value: object, where: str) -> None:
    """UnusableInput where a text in the JSON is none: half of a surrogate pair, which no file can be written with."""
    if not _SURROGATE.search(raw):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise UnusableInput(f"{where} holds half of a character", hint="fetch the file again") from None


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A dictionary of the pairs; ValueError where two share a key, since readers disagree on which one counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} comes twice")
    return result


def _kind(value: object) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def wrong(where: str, name: str, value: object, expected: str) -> UnusableInput:
    """The error for a field whose value is not what it must be."""
    return UnusableInput(f"{where}: {name} is {json.dumps(value, default=str)[:80]}, expected {expected}")


def integer(fields: Mapping[str, object], name: str, where: str, *, least: int, default: int | None = None) -> int:
    """A whole number of at least `least`; null and absence mean `default`, and are refused where there is none."""
    value = fields.get(name)
    if value is None:
        value = default
    if value is None:
        raise UnusableInput(f"{where}: {name} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise wrong(where, name, value, f"a whole number of at least {least}")
    return value


def number(
    fields: Mapping[str, object], name: str, where: str, *, default: float | None = None, zero: bool = False
) -> float:
    """A finite number above zero (`zero`: or zero); null and absence mean `default`, refused where there is none."""
    value = fields.get(name)
    if value is None:
        value = default
    if value is None:
        raise UnusableInput(f"{where}: {name} is missing")
    try:
        result = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # JSON's whole numbers have no end
        result = math.inf
    if not (0 < result < math.inf or (zero and result == 0)):
        raise wrong(where, name, value, "a number of at least zero" if zero else "a number above zero")
    return result


def boolean(fields: Mapping[str, object], name: str, where: str, *, default: bool) -> bool:
    """True or false; null and absence mean `default`."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong(where, name, value, "true or false")
    return value


def table(fields: Mapping[str, object], name: str, where: str) -> Mapping[str, object] | None:
    """An object inside the object, or None where it is null or absent."""
    value = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise wrong(where, name, value, "an object or null")
    return value
