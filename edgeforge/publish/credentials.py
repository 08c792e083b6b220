"""What a registry asks of its callers, answered from the Docker configuration.

The ORAS library reads the configuration's entries, asks its credential helpers, and fetches tokens. It looks for the
file at one place only, so that DOCKER_CONFIG is read here.
"""

import json
import logging
import os
from pathlib import Path

import oras.auth
import oras.container
import requests
from oras.logger import logger as oras_logger

from edgeforge.errors import UnusableInput


class Credentials:
    """Authorization headers for one registry. Tokens are fetched when asked for, and again when they expired.

    `refusal` is the status of the last token request that gave no token, None where there was none.
    """

    def __init__(self, host: str, *, session: requests.Session, plain_http: bool) -> None:
        oras_logger.set_level(logging.CRITICAL)  # what it says is said here, in one sentence
        self._container = oras.container.Container(f"{host}/any", registry=host)
        self.refusal: int | None = None
        session.hooks["response"].append(self._note)
        configuration = docker_configuration()
        self._backends = {
            kind: oras.auth.get_auth_backend(kind, session, insecure=plain_http) for kind in ("token", "basic")
        }
        for backend in self._backends.values():
            backend._auth_config = configuration
            backend.load_configs(self._container)
        self.found = hasattr(self._backends["token"], "_basic_auth")

    def answer(self, refused: requests.Response) -> dict[str, str] | None:
        """Headers that answer the WWW-Authenticate of a 401, freshly made; None where there is no answer."""
        self.refusal = None
        challenge = refused.headers.get("WWW-Authenticate", "")
        if challenge.lower().startswith("basic"):
            backend = self._backends["basic"]
            if not self.found:
                return None
            headers, _ = backend.authenticate_request(refused, {})
            return dict(headers)
        try:
            headers, answered = self._backends["token"].authenticate_request(refused, {}, refresh=True)
        except ValueError:  # the token server answered no JSON
            return None
        return dict(headers) if answered else None

    def _note(self, response: requests.Response, *args: object, **kwargs: object) -> None:
        self.refusal = response.status_code if response.status_code >= 400 else None


def docker_configuration() -> dict[str, object]:
    """The three tables that hold credentials in config.json of DOCKER_CONFIG, else of ~/.docker."""
    folder = os.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {}
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableInput(
            f"the Docker configuration {path} cannot be read: {error}", hint="mend it, or set DOCKER_CONFIG"
        ) from None
    if not isinstance(document, dict):
        raise UnusableInput(f"the Docker configuration {path} is not a JSON object", hint="mend it, or log in again")
    return {
        "auths": document.get("auths") or {},
        "credHelpers": document.get("credHelpers") or {},
        "credsStore": document.get("credsStore"),
    }
