"""A request's body, checked: bytes in, a record out, or a sentence about the first thing that is wrong with it."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from edgeforge.serving.problems import Refusal
from edgeforge.serving.requests import SUPPORTED_ONLY, Record

R = TypeVar("R", bound=Record)


def read(kind: type[R], body: bytes) -> R:
    """Raises Refusal (400) that names the field."""
    try:
        sent = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(sent, dict):
        raise Refusal(400, "the body must be a JSON object", code="invalid_json")
    try:
        return kind.model_validate(sent)
    except ValidationError as errors:
        # Of a field that may be several things, the last error is the one that came furthest into it.
        details = max(errors.errors(include_url=False), key=lambda each: len(_path(sent, each)))
        raise _refusal(sent, details) from None


def _refusal(sent: Mapping[str, object], details: ErrorDetails) -> Refusal:
    path = _path(sent, details)
    param = ".".join(path)
    if details["type"] == "extra_forbidden":
        return Refusal(400, f"there is no field {param}", param=param, code="unknown_parameter")
    if path and path[0] in SUPPORTED_ONLY:
        return Refusal(400, SUPPORTED_ONLY[path[0]], param=path[0], code="unsupported_parameter")
    if details["type"] == "missing":
        return Refusal(400, f"the field {param} is missing", param=param, code="missing_required_parameter")
    said = details["msg"]
    return Refusal(400, f"{param}: {said[:1].lower()}{said[1:]}", param=param, code="invalid_value")


def _path(sent: object, details: ErrorDetails) -> list[str]:
    """Where in what was sent the error is; the names of a union's members, which pydantic tells too, left out."""
    path: list[str] = []
    value = sent
    for step in details["loc"]:
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(step, int):
            value = value[step] if step < len(value) else None
        elif details["type"] != "missing" or step != details["loc"][-1]:
            continue
        path.append(str(step))
    return path
