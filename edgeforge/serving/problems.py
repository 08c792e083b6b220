"""What a client is told when a request is refused, in the form of OpenAI's interface."""

from collections.abc import Mapping

from edgeforge.runtime.errors import BundleError


class Refusal(Exception):
    """A request that gets an error for an answer: the HTTP status and what stands in the body.

    `param` names the field at fault, `code` is for programs. `retry_after_s`, seconds, becomes a header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, object]:
        """{"error": {...}}, as clients of OpenAI's interface read it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> Mapping[str, str]:
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def unusable(error: BundleError, *, param: str | None = None) -> Refusal:
    """The runtime's error about what a request asks for."""
    hint = f" ({error.hint})" if error.hint else ""
    return Refusal(400, error.message + hint, param=param)


def overloaded(message: str, *, retry_after_s: int) -> Refusal:
    return Refusal(429, message, kind="rate_limit_error", code="queue_full", retry_after_s=retry_after_s)


def stopping() -> Refusal:
    return Refusal(503, "the server is stopping", kind="server_error", code="stopping", retry_after_s=5)


def too_slow(limit_s: float) -> Refusal:
    return Refusal(504, f"the answer was not complete within {limit_s:g} seconds", kind="server_error", code="timeout")


def out_of_memory() -> Refusal:
    return Refusal(503, "the server has not enough memory for this request", kind="server_error", code="out_of_memory")


def failed() -> Refusal:
    """A bug: what happened is in the server's log, not in the answer."""
    return Refusal(500, "the server failed to answer; its log says why", kind="server_error", code="internal_error")
