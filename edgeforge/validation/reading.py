"""JSON back into frozen dataclasses, by their annotations: the inverse of dataclasses.asdict."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def read_value(kind: type[T], value: object) -> T:
    """`value` as `kind`: a dataclass, tuple[X, ...], an optional, or what JSON has itself. TypeError where it is not.

    Fields that the document lacks keep their defaults, so that older documents can be read.
    """
    return cast(T, _read(kind, value))


def _read(kind: object, value: object) -> object:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise TypeError(f"{kind.__name__} is an object, not {value!r:.80}")
        hints = get_type_hints(kind)
        return kind(**{name: _read(hints[name], part) for name, part in value.items()})
    if get_origin(kind) is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"an array was expected, not {value!r:.80}")
        item = get_args(kind)[0]
        return tuple(_read(item, part) for part in value)
    if get_origin(kind) in (types.UnionType, Union):
        inner = [each for each in get_args(kind) if each is not type(None)]
        return value if value is None or len(inner) > 1 else _read(inner[0], value)
    return value
