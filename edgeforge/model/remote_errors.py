"""What goes wrong with remote files: tried again where that can help, and one sentence where it did not.

What storage libraries raise has no common class: s3fs raises OSErrors, aiohttp, botocore and Google's their own. So
every exception is judged by its kind and status, except those that only a mistake in a program raises.
"""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from edgeforge.errors import EdgeForgeError, MissingDependency, UnusableInput

DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Between tries, as a busy server is given time: AWS's retry guidance doubles too."""
_BUSY = (408, 425, 429)
_MISTAKES = (TypeError, AttributeError, NameError, AssertionError, MemoryError)

T = TypeVar("T")


class Transient(Exception):
    """An answer that another try may better, such as one that was cut off."""


def patiently(attempt: Callable[[], T], where: str) -> T:
    """The attempt's result, tried again while its failure may pass; UnusableInput or MissingDependency otherwise."""
    for delay in (*DELAYS_S, None):
        try:
            return attempt()
        except (EdgeForgeError, *_MISTAKES):
            raise
        except Exception as error:
            final = explained(error, where)
            if final is not None:
                raise final from error
            if delay is None:
                raise UnusableInput(
                    f"{where} could not be read in {len(DELAYS_S) + 1} tries: {_words(error)}",
                    hint="check the network and the address; the same command tries again",
                ) from error
            time.sleep(delay)
    raise AssertionError("the last delay is None")


def explained(error: BaseException, where: str) -> EdgeForgeError | None:
    """The sentence for a failure that stays; None for one that may pass."""
    statuses = [status for status in map(_status, _causes(error)) if status is not None]
    kinds = {type(cause).__name__ for cause in _causes(error)}
    if isinstance(error, ImportError):
        return missing_package(error, where)
    if any(isinstance(cause, PermissionError) for cause in _causes(error)) or {401, 403} & set(statuses):
        return _denied(where)
    if any("Credential" in kind or kind == "InvalidToken" for kind in kinds):
        return _denied(where)
    if is_missing(error):
        return UnusableInput(f"{where} does not exist", hint="check the address; names are case-sensitive")
    if any(400 <= status < 500 and status not in _BUSY for status in statuses):
        return UnusableInput(f"{where} cannot be read: {_words(error)}", hint="check the address")
    return None


def is_missing(error: BaseException) -> bool:
    """Whether the failure says that there is no such file. (fsspec's http says so of every failure, with its cause.)"""
    if not isinstance(error, FileNotFoundError):
        return False
    causes = list(_causes(error))[1:]
    statuses = [status for status in map(_status, causes) if status is not None]
    if statuses:
        return 404 in statuses or 410 in statuses
    return all(isinstance(cause, (FileNotFoundError, LookupError)) for cause in causes)


def missing_package(error: ImportError, where: str) -> MissingDependency:
    """fsspec says which package adds a scheme."""
    return MissingDependency(
        f"{where} needs a package that is not installed: {error}",
        hint="pip install 'edgeforge[s3]' for s3://, 'edgeforge[gs]' for gs://, 'edgeforge[https]' for https://",
    )


def _denied(where: str) -> UnusableInput:
    return UnusableInput(
        f"access to {where} is denied",
        hint="give the scheme's usual credentials (AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN...) the right"
        " to read and to list it, or set FSSPEC_S3_ANON=true for a public bucket",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _status(error: BaseException) -> int | None:
    """An HTTP status, as aiohttp, gcsfs, requests and botocore carry it."""
    response = getattr(error, "response", None)
    found = [getattr(error, "status", None), getattr(response, "status_code", None)]
    if type(error).__module__.startswith("gcsfs"):  # elsewhere a code is anything: aiohttp's parser has 400
        found.append(getattr(error, "code", None))
    if isinstance(response, dict):
        found.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return next((status for status in found if isinstance(status, int)), None)


def _words(error: BaseException) -> str:
    """The failure on one line; some say nothing but their name."""
    cause = list(_causes(error))[-1]
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text[:200]}" if text else type(cause).__name__
