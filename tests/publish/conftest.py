"""A registry, a proxy before it, and bundles to publish. Everything listens on 127.0.0.1."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Proxy, before
from published import LICENCE, PROGRAM, Run, incompressible, with_file
from registries import RunningRegistry, fast_disk, program, running
from tiny_bundle import make_bundle


@pytest.fixture(scope="session")
def registry_program() -> str:
    found = program()
    if found is None:
        pytest.skip("no docker-registry: ci/registry fetches one")
    return found


@pytest.fixture(scope="session")
def registry(registry_program: str) -> Iterator[RunningRegistry]:
    with tempfile.TemporaryDirectory(dir=fast_disk()) as folder, running(registry_program, Path(folder)) as started:
        yield started


@pytest.fixture
def proxy(registry: RunningRegistry) -> Iterator[Proxy]:
    with before(registry.host) as started:
        yield started


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """As a user with a fresh account: no credentials, an empty cache."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    (tmp_path / "docker").mkdir()
    return kept | {"EDGEFORGE_CACHE": str(tmp_path / "cache"), "DOCKER_CONFIG": str(tmp_path / "docker")}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """`edgeforge` in a process of its own."""

    def run_it(*arguments: object, **more: str) -> "subprocess.CompletedProcess[str]":
        command = [*PROGRAM, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment | more)

    return run_it


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle. Read it, do not change it."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", notices=LICENCE)


@pytest.fixture(scope="session")
def large(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a file of 12 MiB, which goes in chunks of 1 MiB. Read it, do not change it."""
    bundle = shutil.copytree(tiny, tmp_path_factory.mktemp("bundles") / "large")
    return with_file(bundle, "model/extra.data", incompressible(12 << 20))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For localhost, by an authority that nobody knows: itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl, which makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"
