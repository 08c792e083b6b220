"""One registry over HTTP: who may, when to try again, and a sentence for every way it can fail.

The protocol is OCI distribution-spec 1.1 (opencontainers/distribution-spec, spec.md). The ORAS library's own requests
retry everything for minutes, know no Retry-After, and keep an expired token, so that requests are made here.
"""

import email.utils
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Literal
from urllib.parse import urljoin, urlsplit

import requests
import requests.adapters
import urllib3.exceptions

from edgeforge.errors import EdgeForgeError, UnusableInput
from edgeforge.publish.credentials import Credentials
from edgeforge.publish.reference import OciReference

CONNECT_SECONDS = 10
READ_SECONDS = 120
LONGEST_PAUSE_SECONDS = 60
FIRST_PAUSE_SECONDS = 0.5
REDIRECTS = 5
BUSY = frozenset({408, 429, 500, 502, 503, 504})

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH"]
# (URL, headers) -> what the registry answered.
Send = Callable[[str, Mapping[str, str]], requests.Response]


class Busy(EdgeForgeError):
    """The registry is away or too busy; the same command may work later. `seconds`: how long it asks to wait."""

    exit_code = UnusableInput.exit_code

    def __init__(self, message: str, *, hint: str | None = None, seconds: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.seconds = seconds

    @property
    def soon(self) -> bool:
        """Whether it is worth waiting for."""
        return self.seconds is None or self.seconds <= LONGEST_PAUSE_SECONDS


class Registry:
    """A connection to `reference`'s host. `attempts` counts how often a request is made before it is given up.

    Several threads may ask at once.
    """

    def __init__(
        self,
        reference: OciReference,
        *,
        plain_http: bool = False,
        attempts: int = 5,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.reference = reference
        self.host = reference.host
        self.attempts = attempts
        self.plain_http = plain_http
        self._base = f"{'http' if plain_http else 'https'}://{self.host}"
        self._pause = pause
        self._session = _session()
        self._session.auth = _as_it_is  # else requests puts an entry of ~/.netrc in the place of ours
        self._credentials = Credentials(self.host, session=_session(), plain_http=plain_http)
        self._authorization: dict[str, str] = {}
        self._renewing = threading.Lock()

    def url(self, path: str) -> str:
        """`path` is under this repository: `blobs/sha256:...`."""
        return f"{self._base}/v2/{self.reference.name}/{path}"

    def request(
        self,
        method: Method,
        url: str,
        *,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        stream: bool = False,
        again: bool = True,
        send: Send | None = None,
    ) -> requests.Response:
        """The response, whose status is one of `expect`. Raises UnusableInput, or Busy after the last attempt.

        `send` makes the request itself, where it is not to be made here. Without `again`, a lost connection or a busy
        registry is Busy at once (the caller knows better how to go on).
        """
        attempts = self.attempts if again else 1
        for attempt in range(1, attempts + 1):
            try:
                response = self._authorized(method, url, headers or {}, send or self._sender(method, body, stream))
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = self.explain(error)
                if attempt == attempts or not isinstance(reason, Busy):
                    raise reason from None
                self.wait(attempt)
                continue
            if response.status_code in expect:
                return response
            refusal = self._refusal(method, response)
            response.close()
            if attempt == attempts or not (isinstance(refusal, Busy) and refusal.soon):
                raise refusal
            self.wait(attempt, refusal.seconds)
        raise AssertionError("unreachable: attempts is at least 1")

    def wait(self, attempt: int, seconds: float | None = None) -> None:
        """Pause before the next attempt: as long as the registry asked for, else twice as long each time."""
        if seconds is None:
            longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            seconds = longest * random.uniform(0.5, 1)
        self._pause(seconds)

    def location(self, response: requests.Response) -> str:
        """The absolute URL of the Location header, on which an upload goes on."""
        where = response.headers.get("Location")
        if not where:
            raise UnusableInput(f"{self.host} began an upload without saying where", hint="is it a registry?")
        url = urljoin(response.url, where)
        self._check_scheme(url)
        return url

    def explain(self, error: Exception) -> EdgeForgeError:
        """What a lost or refused connection means; Busy where trying again may help."""
        text = str(error)
        if isinstance(error, requests.exceptions.SSLError) or "CERTIFICATE_VERIFY_FAILED" in text:
            return self._certificate(text)
        if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
            return UnusableInput(f"{self.host} is not a host: {text}", hint="give oci://host[:port]/name:tag")
        kinds = {
            "Connection refused": "the connection was refused",
            "Name or service not known": "there is no such host",
            "Temporary failure in name resolution": "its name could not be resolved",
            "No address associated": "there is no such host",
            "Network is unreachable": "the network is unreachable",
            "timed out": "it did not answer in time",
        }
        for words, meaning in kinds.items():
            if words in text:
                final = words in ("Name or service not known", "No address associated")
                kind = UnusableInput if final else Busy
                return kind(f"{self.host} could not be reached: {meaning}", hint="check host and port, and the network")
        return Busy(f"the connection to {self.host} was cut", hint="the same command goes on where this one stopped")

    def _certificate(self, text: str) -> EdgeForgeError:
        if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text or "UNKNOWN_PROTOCOL" in text:
            return UnusableInput(
                f"{self.host} does not speak TLS", hint="if it is meant to be reached over plain HTTP, add --plain-http"
            )
        reason = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or "TLS failed"
        return UnusableInput(
            f"the certificate of {self.host} is not trusted: {reason.rstrip('.')}",
            hint="set REQUESTS_CA_BUNDLE to the file with the certificate of its authority, if you trust that",
        )

    def _sender(self, method: Method, body: bytes, stream: bool) -> Send:
        def send(url: str, headers: Mapping[str, str]) -> requests.Response:
            return self._session.request(
                method, url, data=body or None, headers=dict(headers), stream=stream, allow_redirects=False
            )

        return send

    def _authorized(self, method: Method, url: str, headers: Mapping[str, str], send: Send) -> requests.Response:
        """One request, and a second one with fresh credentials where the first is answered with 401."""
        used = self._authorization
        response = self._follow(method, url, headers, send)
        while response.status_code == 401 and self._is_ours(url):
            with self._renewing:
                if first := self._authorization is used:  # else another thread has just renewed it
                    headers_now = self._credentials.answer(response)
                    if headers_now is None:
                        status = self._credentials.refusal
                        if status in BUSY:  # the token server's trouble is no verdict on the credentials
                            response.status_code = status
                        return response
                    self._authorization = headers_now
                used = self._authorization
            response.close()
            response = self._follow(method, url, headers, send)
            if first:
                break
        return response

    def _follow(self, method: Method, url: str, headers: Mapping[str, str], send: Send) -> requests.Response:
        """Redirects of GET and HEAD are followed here: never from HTTPS to HTTP, never with our credentials elsewhere.

        Blobs are often stored at another host (distribution-spec, "Pulling blobs": 307).
        """
        for _ in range(REDIRECTS):
            own = self._authorization if self._is_ours(url) else {}
            response = send(url, {"Accept-Encoding": "identity", **headers, **own})
            if not (response.is_redirect and method in ("GET", "HEAD")):
                return response
            response.close()
            url = urljoin(url, response.headers["Location"])
            self._check_scheme(url)
        raise UnusableInput(f"{self.host} redirects in circles", hint="is it a registry?")

    def _is_ours(self, url: str) -> bool:
        return urlsplit(url).netloc == self.host

    def _check_scheme(self, url: str) -> None:
        if urlsplit(url).scheme != "https" and not self.plain_http:
            raise UnusableInput(
                f"{self.host} points to plain HTTP ({urlsplit(url).netloc})", hint="add --plain-http if that is right"
            )

    def _refusal(self, method: Method, response: requests.Response) -> EdgeForgeError:
        """The sentence for a status that was not expected."""
        status, name = response.status_code, f"{self.host}/{self.reference.name}"
        said = _said(response)
        if status == 401:
            return self._unauthorized(response, name)
        if status == 403:
            what = "read" if method in ("GET", "HEAD") else "written"
            return UnusableInput(
                f"{name} may not be {what} with these credentials{said}",
                hint="ask for the permission, or log in as somebody who has it",
            )
        if status == 404:
            return UnusableInput(f"{self.host} has no {self.reference.name}{said}", hint="check the name and the tag")
        if status == 429:
            seconds = retry_after(response.headers.get("Retry-After"))
            later = f"in {seconds:.0f} seconds" if seconds else "later"
            return Busy(f"{self.host} gets too many requests (429)", hint=f"try again {later}", seconds=seconds)
        if status in BUSY:
            seconds = retry_after(response.headers.get("Retry-After"))
            what = f"{self.host} answered {status} ({response.reason}){said}"
            return Busy(what, hint="try again later", seconds=seconds)
        return UnusableInput(
            f"{self.host} answered {status} ({response.reason}) to {method}{said}", hint="is it an OCI registry?"
        )

    def _unauthorized(self, response: requests.Response, name: str) -> EdgeForgeError:
        hint = f"log in again: docker login {self.host}"
        if not self._credentials.found:
            return UnusableInput(
                f"{name} asks for credentials, and the Docker configuration has none for {self.host}",
                hint=f"docker login {self.host}",
            )
        if "invalid_token" in response.headers.get("WWW-Authenticate", "") and self._credentials.refusal is None:
            return UnusableInput(f"the token for {name} has expired or is invalid", hint=hint)
        return UnusableInput(f"{self.host} refused the credentials for {name}: wrong or expired", hint=hint)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, 10.2.3); None for anything else."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


class _Impatient(requests.adapters.HTTPAdapter):
    """requests waits for ever unless each call says otherwise, and ORAS's do not. (requests asks for a subclass.)"""

    def send(self, request: requests.PreparedRequest, *args: object, **kwargs: object) -> requests.Response:
        kwargs["timeout"] = (CONNECT_SECONDS, READ_SECONDS)
        return super().send(request, *args, **kwargs)  # type: ignore[arg-type]


def _session() -> requests.Session:
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Impatient())
    return session


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _said(response: requests.Response) -> str:
    """The registry's own words, from the error document of distribution-spec, "Error codes"."""
    try:
        errors = response.json()["errors"]
        words = str(errors[0].get("message") or errors[0]["code"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, requests.RequestException):
        return ""
    return f": {words[:200]}"
