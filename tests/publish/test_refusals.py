"""Every way in which a registry can fail is one sentence with its exit code, and leaves nothing half-written."""

import base64
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from faults import Fault, Proxy, Request, before
from published import Run, contents, document, only, refused
from registries import RunningRegistry, free_port, running

from edgeforge.errors import EdgeForgeError, IntegrityError, UnusableInput
from edgeforge.publish import Wire, publish, pull
from edgeforge.publish.reference import parse_reference
from edgeforge.publish.registry import LONGEST_PAUSE_SECONDS, Registry, retry_after
from edgeforge.runtime.errors import BundleError

PLAIN = "--plain-http"
QUICK = ("--plain-http", "--attempts", "2")
Publish = Callable[[Path, str], object]


@pytest.fixture
def published(registry: RunningRegistry, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name in the registry that has the tiny bundle under `1`."""
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "cache"))
    publish([tiny], f"oci://{registry.host}/refusals/tiny:1", wire=Wire(plain_http=True))
    return "refusals/tiny:1"


def fetch(proxy: Proxy, name: str, folder: Path, *, attempts: int = 2) -> None:
    """Pull in this process, which is quicker."""
    wire = Wire(plain_http=True, attempts=attempts)
    pull(f"oci://{proxy.host}/{name}", folder, wire=wire, platform=None, choose=min)


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (Fault(change=flip), "arrived changed"),
        (Fault(change=lambda data: data[:-1]), "is truncated in the registry"),
        (Fault(change=lambda data: data + b"x"), "is longer than it should be"),
    ],
)
def test_a_blob_with_other_bytes_is_refused_by_name(
    wrong: Fault, sentence: str, proxy: Proxy, published: str, tiny: Path, tmp_path: Path
) -> None:
    """Whichever file it is, exit code 6."""
    for layer, name in (("first", "manifest.json"), ("later", "")):
        seen = []

        def fault(request: Request, layer: str = layer, seen: list[str] = seen) -> Fault | None:
            if not request.is_blob:
                return None
            seen.append(request.path)
            return wrong if layer == "first" or len(seen) > 5 else None

        proxy.fault = fault
        with pytest.raises(IntegrityError, match=sentence) as refusal:
            fetch(proxy, published, tmp_path / "got")
        assert refusal.value.exit_code == 6
        assert refusal.value.message.startswith(name)
        only(tmp_path, ["cache"])


def test_a_changed_manifest_is_refused(proxy: Proxy, published: str, tmp_path: Path) -> None:
    def fault(request: Request) -> Fault | None:
        return (
            Fault(change=lambda data: data.replace(b"LICENSE", b"LICENCE")) if "/manifests/" in request.path else None
        )

    proxy.fault = fault
    with pytest.raises(IntegrityError, match="arrived changed"):
        fetch(proxy, published, tmp_path / "got")
    only(tmp_path, ["cache"])


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "model/../../evil", "model\\..\\evil", "C:evil", ""])
def test_a_path_out_of_the_folder_is_refused(
    path: str, registry: RunningRegistry, proxy: Proxy, published: str, tmp_path: Path
) -> None:
    document = requests.get(
        f"http://{registry.host}/v2/refusals/tiny/manifests/1",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        timeout=30,
    ).json()
    document["layers"][3]["annotations"] = {"org.cncf.model.filepath": path}
    put = requests.put(
        f"http://{registry.host}/v2/refusals/tiny/manifests/evil",
        data=json.dumps(document),
        headers={"Content-Type": document["mediaType"]},
        timeout=30,
    )
    assert put.status_code == 201
    with pytest.raises(IntegrityError, match="leads out of its folder"):
        fetch(proxy, "refusals/tiny:evil", tmp_path / "got")
    only(tmp_path, ["cache"])


@pytest.mark.parametrize("edit", ["swap", "drop", "add", "twice"])
def test_an_artifact_that_is_not_what_its_bundle_says_is_refused(
    edit: str, registry: RunningRegistry, proxy: Proxy, published: str, tmp_path: Path
) -> None:
    """Files exchanged, left out, added or named twice by whoever can write to the registry."""
    url = f"http://{registry.host}/v2/refusals/tiny/manifests/"
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    document = requests.get(f"{url}1", headers=accept, timeout=30).json()
    layers = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in document["layers"]}
    if edit == "swap":
        for key in ("digest", "size"):
            layers["LICENSE"][key] = layers["NOTICE"][key]
    elif edit == "drop":
        document["layers"].remove(layers["runtime/chat.py"])
    else:
        more = json.loads(json.dumps(layers["LICENSE"]))
        more["annotations"]["org.cncf.model.filepath"] = "runtime/evil.py" if edit == "add" else "license"
        document["layers"].append(more)
    requests.put(
        f"{url}{edit}", data=json.dumps(document), headers={"Content-Type": document["mediaType"]}, timeout=30
    ).raise_for_status()
    with pytest.raises((EdgeForgeError, BundleError)) as refusal:
        fetch(proxy, f"refusals/tiny:{edit}", tmp_path / "got")
    assert refusal.value.exit_code == 6
    only(tmp_path, ["cache"])


@pytest.mark.parametrize(("status", "meaning"), [(500, "500"), (503, "503"), (429, "too many requests")])
def test_a_busy_registry_is_asked_again_and_then_given_up(
    status: int, meaning: str, proxy: Proxy, run: Run, published: str, tiny: Path, tmp_path: Path
) -> None:
    proxy.fault = lambda request: Fault(status=status)
    assert meaning in refused(run("pull", f"oci://{proxy.host}/{published}", tmp_path / "got", *QUICK), 3)
    assert len(proxy.requests) == 2
    assert meaning in refused(run("publish", tiny, f"oci://{proxy.host}/{published}", *QUICK), 3)
    only(tmp_path, ["cache", "docker"])


def test_trouble_that_passes_is_not_told(proxy: Proxy, run: Run, tiny: Path, tmp_path: Path) -> None:
    """Every fifth request fails, with whatever a busy registry says; pushing and pulling work all the same."""
    chance = random.Random(5)

    def fault(request: Request) -> Fault | None:
        if chance.random() > 0.2:
            return None
        return Fault(status=chance.choice([500, 429, 502, 503, 504]), headers={"Retry-After": "0"})

    proxy.fault = fault
    reference = f"oci://{proxy.host}/trouble/tiny:1"
    document(run("publish", tiny, reference, PLAIN, "--attempts", 8, "--json"))
    document(run("pull", reference, tmp_path / "got", PLAIN, "--attempts", 8, "--json"))
    assert contents(tmp_path / "got") == contents(tiny)


def test_it_waits_as_long_as_it_is_asked_to(proxy: Proxy, published: str) -> None:
    """Retry-After as a number, as a date, and too long to wait for."""
    answers = iter([Fault(status=429, headers={"Retry-After": "7"}), Fault(status=500), None])
    proxy.fault = lambda request: next(answers)
    reference = parse_reference(f"oci://{proxy.host}/{published}")
    pauses: list[float] = []
    registry = Registry(reference, plain_http=True, pause=pauses.append)
    registry.request("HEAD", registry.url("tags/list"), expect=(200, 404, 405))
    assert pauses[0] == 7
    assert 0 < pauses[1] <= 1
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("soon") is None
    proxy.forget()
    proxy.fault = lambda request: Fault(status=429, headers={"Retry-After": str(LONGEST_PAUSE_SECONDS * 60)})
    with pytest.raises(EdgeForgeError, match="429") as refusal:
        registry.request("GET", registry.url("manifests/1"), expect=(200,))
    assert "3600 seconds" in str(refusal.value.hint)
    assert len(proxy.requests) == 1


def test_nobody_listens(run: Run, tiny: Path, tmp_path: Path) -> None:
    reference = f"oci://127.0.0.1:{free_port()}/a/b:1"
    assert "the connection was refused" in refused(run("publish", tiny, reference, *QUICK), 3)
    assert "the connection was refused" in refused(run("pull", reference, tmp_path / "got", *QUICK), 3)
    only(tmp_path, ["cache", "docker"] if (tmp_path / "cache").exists() else ["docker"])


def test_there_is_no_such_tag(registry: RunningRegistry, run: Run, tmp_path: Path) -> None:
    reference = f"oci://{registry.host}/nothing/here:9"
    assert reference in refused(run("pull", reference, tmp_path / "got", PLAIN), 3)


def test_plain_http_is_never_spoken_unasked(registry: RunningRegistry, run: Run, tiny: Path, tmp_path: Path) -> None:
    reference = f"oci://{registry.host}/unasked/tiny:1"
    done = run("publish", tiny, reference)
    assert "does not speak TLS" in refused(done, 3)
    assert "--plain-http" in done.stderr
    assert "does not speak TLS" in refused(run("pull", reference, tmp_path / "got"), 3)


# --- certificates


def test_a_certificate_that_nobody_vouches_for_is_refused_until_it_is_trusted(
    registry_program: str, certificate: tuple[Path, Path], run: Run, tiny: Path, tmp_path: Path
) -> None:
    with running(registry_program, tmp_path / "registry", tls=certificate) as secure:
        port = secure.host.rpartition(":")[2]
        reference = f"oci://localhost:{port}/tls/tiny:1"
        done = run("publish", tiny, reference)
        assert "certificate of localhost" in refused(done, 3)
        assert "self-signed" in done.stderr
        assert "REQUESTS_CA_BUNDLE" in done.stderr
        trust = {"REQUESTS_CA_BUNDLE": str(certificate[0])}
        document(run("publish", tiny, reference, "--json", **trust))
        assert "certificate of 127.0.0.1" in refused(
            run("pull", f"oci://{secure.host}/tls/tiny:1", tmp_path / "got", **trust), 3
        )
        document(run("pull", reference, tmp_path / "got", "--json", **trust))
    assert contents(tmp_path / "got") == contents(tiny)


# --- who may


def docker_login(tmp_path: Path, host: str, word: str) -> None:
    auth = base64.b64encode(f"robot:{word}".encode()).decode()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


class Guard:
    """Lets a proxy ask for what registries ask for: a password, or a token of its own token server.

    `good_for` is how many requests a token lasts; `open` whether the token server still takes the password.
    """

    def __init__(self, proxy: Proxy, kind: str, *, good_for: int = 10_000) -> None:
        self.proxy = proxy
        self.kind = kind
        self.good_for = good_for
        self.open = True
        self.issued = 0
        self.used = 0
        proxy.fault = self.fault

    def fault(self, request: Request) -> Fault | None:
        given = request.headers.get("Authorization", "")
        password = given == "Basic " + base64.b64encode(b"robot:right").decode()
        if request.path.startswith("/token"):
            if not (password and self.open):
                return Fault(status=401)
            self.issued, self.used = self.issued + 1, 0
            return Fault(status=200, body=json.dumps({"token": f"t{self.issued}"}).encode())
        if self.kind == "basic":
            return None if password else Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="here"'})
        self.used += 1
        if given == f"Bearer t{self.issued}" and self.issued and self.used <= self.good_for:
            return None
        challenge = f'Bearer realm="http://{self.proxy.host}/token",service="tests",scope="repository:a/b:pull,push"'
        stale = ',error="invalid_token"' if given else ""
        return Fault(status=401, headers={"WWW-Authenticate": challenge + stale})


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_credentials_are_those_of_docker_login(kind: str, proxy: Proxy, run: Run, tiny: Path, tmp_path: Path) -> None:
    Guard(proxy, kind)
    reference = f"oci://{proxy.host}/{kind}/tiny:1"
    done = run("publish", tiny, reference, PLAIN)
    assert "asks for credentials" in refused(done, 3)
    assert f"docker login {proxy.host}" in done.stderr
    docker_login(tmp_path, proxy.host, "wrong")
    assert "refused the credentials" in refused(run("publish", tiny, reference, PLAIN), 3)
    docker_login(tmp_path, proxy.host, "right")
    document(run("publish", tiny, reference, PLAIN, "--json"))
    document(run("pull", reference, tmp_path / "got", PLAIN, "--json"))
    assert contents(tmp_path / "got") == contents(tiny)


def test_a_credential_helper_is_asked(proxy: Proxy, run: Run, tiny: Path, tmp_path: Path) -> None:
    Guard(proxy, "bearer")
    tools = tmp_path / "tools"
    tools.mkdir()
    helper = tools / "docker-credential-tests"
    answer = json.dumps({"Username": "robot", "Secret": "right"})
    helper.write_text(f"#!{sys.executable}\nprint({answer!r})\n")
    helper.chmod(0o755)
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"credHelpers": {proxy.host: "tests"}}))
    environment = {"PATH": f"{tools}:/usr/bin:/bin"}
    document(run("publish", tiny, f"oci://{proxy.host}/helper/tiny:1", PLAIN, "--json", **environment))


def test_a_token_that_expires_on_the_way_is_renewed(proxy: Proxy, run: Run, large: Path, tmp_path: Path) -> None:
    guard = Guard(proxy, "bearer", good_for=10)
    docker_login(tmp_path, proxy.host, "right")
    reference = f"oci://{proxy.host}/renewed/large:1"
    document(run("publish", large, reference, PLAIN, "--chunk-mib", 1, "--json"))
    assert guard.issued > 5
    document(run("pull", reference, tmp_path / "got", PLAIN, "--json"))
    assert contents(tmp_path / "got") == contents(large)


def test_a_token_that_expires_and_is_not_renewed_is_told(proxy: Proxy, run: Run, tiny: Path, tmp_path: Path) -> None:
    guard = Guard(proxy, "bearer", good_for=20)
    docker_login(tmp_path, proxy.host, "right")
    watch = guard.fault

    def closing(request: Request) -> Fault | None:
        guard.open = guard.issued == 0
        return watch(request)

    proxy.fault = closing
    done = run("publish", tiny, f"oci://{proxy.host}/expired/tiny:1", PLAIN)
    assert re.search("refused the credentials .* expired", refused(done, 3))
    assert f"docker login {proxy.host}" in done.stderr


def test_a_fresh_token_that_is_called_expired_is_told(proxy: Proxy, run: Run, tiny: Path, tmp_path: Path) -> None:
    """As where the clocks differ."""
    Guard(proxy, "bearer", good_for=0)
    docker_login(tmp_path, proxy.host, "right")
    done = run("publish", tiny, f"oci://{proxy.host}/clocks/tiny:1", PLAIN)
    assert "has expired or is invalid" in refused(done, 3)


def test_what_is_forbidden_is_told(proxy: Proxy, run: Run, published: str, tiny: Path, tmp_path: Path) -> None:
    said = b'{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}'
    proxy.fault = lambda request: Fault(status=403, body=said)
    sentence = refused(run("pull", f"oci://{proxy.host}/{published}", tmp_path / "got", PLAIN), 3)
    assert "may not be read" in sentence
    assert "access to the resource is denied" in sentence
    proxy.fault = lambda request: Fault(status=403, body=said) if request.method != "HEAD" else None
    assert "may not be written" in refused(run("publish", tiny, f"oci://{proxy.host}/refusals/new:1", PLAIN), 3)


def test_a_broken_docker_configuration_is_named(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "docker" / "config.json").write_text("{")
    sentence = refused(run("publish", tiny, f"oci://127.0.0.1:{free_port()}/a/b:1", PLAIN), 3)
    assert str(tmp_path / "docker" / "config.json") in sentence


def test_credentials_do_not_follow_a_redirect_to_another_host(
    registry: RunningRegistry, proxy: Proxy, run: Run, published: str, tmp_path: Path
) -> None:
    """Blobs are often elsewhere."""
    guard = Guard(proxy, "basic")
    docker_login(tmp_path, proxy.host, "right")
    watch = guard.fault
    with before(registry.host) as elsewhere:

        def fault(request: Request) -> Fault | None:
            there = Fault(status=307, headers={"Location": f"http://{elsewhere.host}{request.path}"})
            return watch(request) or (there if request.is_blob else None)

        proxy.fault = fault
        document(run("pull", f"oci://{proxy.host}/{published}", tmp_path / "got", PLAIN, "--json"))
        assert len(elsewhere.requests) > 10
        assert not any("Authorization" in request.headers for request in elsewhere.requests)


def test_a_registry_that_points_from_tls_to_plain_http_is_not_followed(
    registry_program: str, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    reference = parse_reference("oci://localhost:1/a/b:1")
    registry = Registry(reference)
    response = requests.Response()
    response.url = "https://localhost:1/v2/a/b/blobs/uploads/"
    response.headers["Location"] = "http://localhost:1/v2/a/b/blobs/uploads/1"
    with pytest.raises(UnusableInput, match="points to plain HTTP"):
        registry.location(response)
