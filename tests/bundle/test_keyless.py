"""Signing as an identity, as far as that goes without sigstore's services: the token is had and looked at here, and
what is wrong with it is a sentence before any of them is asked. Nothing leaves this machine.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tiny_bundle import make_bundle

from edgeforge.bundle.signature import Identity, KeylessSigner, check_signer, is_signed, sign, verify_signature
from edgeforge.errors import UnusableInput

jwt = pytest.importorskip("jwt", reason="sigstore brings it")
oidc = pytest.importorskip("sigstore.oidc")
NOBODY = "there is no identity to sign as: "


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing here succeeds in signing it."""
    return make_bundle(tmp_path_factory.mktemp("keyless") / "bundle")


def token(audience: str = "sigstore", *, expires_in_s: int = 600) -> str:
    """As GitHub would write it, but for the signature, which only sigstore checks."""
    now = int(time.time())
    claims = {"iss": "https://token.actions.githubusercontent.com", "sub": "repo:org/model", "aud": audience}
    claims |= {"job_workflow_ref": "org/model/.github/workflows/bundles.yml@refs/tags/v1"}
    text: str = jwt.encode({**claims, "iat": now - 900, "exp": now + expires_in_s}, "k" * 32, algorithm="HS256")
    return text


def refused(bundle: Path, *arguments: str, **environment: str) -> str:
    """The sentence with which `edgeforge sign` ends in a job where nobody can log in."""
    command = [sys.executable, "-m", "edgeforge.cli", "sign", str(bundle), *arguments]
    services = ("GITHUB_", "GITLAB_", "BUILDKITE", "CIRCLECI", "ACTIONS_", "SIGSTORE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(services)}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=kept | environment
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: in GitHub Actions the job needs `permissions: id-token: write`")
    assert not is_signed(bundle)
    return error.removeprefix("error: ")


@contextmanager
def token_service(status: int, body: str) -> Iterator[dict[str, str]]:
    """What GitHub gives to a job that may ask for its identity; the service answers this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/token"
        try:
            yield {
                "GITHUB_ACTIONS": "true",
                "ACTIONS_ID_TOKEN_REQUEST_URL": url,
                "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "t",
            }
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "given",
    ["abc", "a.b.c", token(expires_in_s=-60), token("somebody else")],
    ids=["no token", "three parts", "expired", "for another service"],
)
def test_a_token_that_is_none_is_refused_before_the_work(given: str, bundle: Path) -> None:
    with pytest.raises(UnusableInput, match=NOBODY):
        check_signer(KeylessSigner(token=given))


def test_the_commands_of_the_workflows_refuse_a_fake_token(bundle: Path) -> None:
    """GitLab's job has its token in SIGSTORE_ID_TOKEN."""
    assert refused(bundle, "--identity-token", "abc").startswith(NOBODY)
    assert refused(bundle, "--keyless", SIGSTORE_ID_TOKEN=token(expires_in_s=-60), GITLAB_CI="1").startswith(NOBODY)


def test_a_job_without_the_permission_is_told_which(bundle: Path) -> None:
    assert "permissions" in refused(bundle, "--keyless", GITHUB_ACTIONS="true")
    assert "SIGSTORE_ID_TOKEN" in refused(bundle, "--keyless", GITLAB_CI="true")


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (403, "not you", "code=403"),
        (200, "<html>", "malformed"),
        (200, json.dumps({"value": "abc"}), "Malformed token"),
        (200, json.dumps({"value": token("somebody else")}), "audience"),
    ],
)
def test_an_ambient_token_that_is_refused_or_none_is_told(
    status: int, body: str, told: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with token_service(status, body) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UnusableInput, match=told) as caught:
            check_signer(KeylessSigner())
    assert caught.value.message.startswith(NOBODY)


def test_where_nobody_can_log_in_nobody_is_waited_for(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "detect_credential", lambda: None)
    with pytest.raises(UnusableInput, match="nobody is here to log in"):
        check_signer(KeylessSigner())
    check_signer(KeylessSigner(may_log_in=True))


def test_what_is_asked_of_sigstore(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token of the job or of the user, and never another way to an identity."""
    from model_signing._signing import sign_sigstore

    asked: list[dict[str, object]] = []

    class Noted(Exception):
        pass

    def note(self: object, **options: object) -> None:
        asked.append({key: value for key, value in options.items() if value})
        raise Noted("no network here")

    monkeypatch.setattr(sign_sigstore.Signer, "__init__", note)
    monkeypatch.setattr(sign_sigstore.Verifier, "__init__", note)
    own = token()
    with token_service(200, json.dumps({"value": own})) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for signer in (KeylessSigner(), KeylessSigner(token=own)):
            with pytest.raises(UnusableInput, match="no network here") as caught:
                sign(bundle, signer)
            assert "id-token" in (caught.value.hint or "")
    with pytest.raises(UnusableInput, match="roots of trust could not be fetched"):
        verify_signature(bundle, Identity(identity="me@example.org", provider="https://example.org"))
    identity = {"identity": "me@example.org", "oidc_issuer": "https://example.org"}
    assert asked == [{"identity_token": own}, {"identity_token": own}, identity]
