"""A pull of the demo against a plain copy of the same bytes over the same loopback."""

import http.client
import tempfile
import time
from pathlib import Path
from statistics import median

import pytest
from built import Build
from pytest_benchmark.fixture import BenchmarkFixture
from report import Report

from edgeforge.publish import Wire, publish, pull
from edgeforge.runtime.integrity import sha256_of, tree

TITLE = "Pull"
ROUNDS = 7
BLOCK_BYTES = 1 << 20
NAME = "bench/demo"


def test_pull(benchmark: BenchmarkFixture, report: Report, demo_int4: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write to the same disk and take turns; the pull also verifies, and a process's start is in neither."""
    registries = pytest.importorskip("registries", reason="run with tests/publish on the path")
    program = registries.program()
    if program is None:
        pytest.skip("no docker-registry: ci/registry fetches one")
    with tempfile.TemporaryDirectory(dir=registries.fast_disk()) as name:
        scratch = Path(name)
        monkeypatch.setenv("EDGEFORGE_CACHE", str(scratch / "cache"))
        with registries.running(program, scratch / "registry") as registry:
            publish([demo_int4.bundle], f"oci://{registry.host}/{NAME}:1", wire=Wire(plain_http=True))
            copies, pulls = measure(benchmark, registry.host, demo_int4.bundle, scratch)
    size = sum(tree(demo_int4.bundle).values())
    report.row(TITLE, _row("plain copy", median(copies), size))
    report.row(TITLE, _row("pull", median(pulls), size))
    report.at_most("pull over plain copy", median(pulls) / median(copies), 1.5, "times")


def measure(benchmark: BenchmarkFixture, host: str, bundle: Path, scratch: Path) -> tuple[list[float], list[float]]:
    """Seconds of each copy and each pull, one after the other."""
    copies: list[float] = []
    pulls: list[float] = []
    numbers = iter(range(10_000))

    def copy_once() -> None:
        started = time.perf_counter()
        plain_copy(host, bundle, scratch / f"copy{next(numbers)}")
        copies.append(time.perf_counter() - started)

    def pull_once() -> None:
        started = time.perf_counter()
        folder = scratch / f"pull{next(numbers)}"
        pull(f"oci://{host}/{NAME}:1", folder, wire=Wire(plain_http=True), platform=None, choose=min)
        pulls.append(time.perf_counter() - started)

    benchmark.pedantic(pull_once, setup=copy_once, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    return copies[1:], pulls[1:]


def plain_copy(host: str, bundle: Path, folder: Path) -> None:
    """Every file of the bundle by GET over one connection, written as it comes, and believed."""
    connection = http.client.HTTPConnection(host)
    for path in tree(bundle):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        connection.request("GET", f"/v2/{NAME}/blobs/sha256:{digests(bundle)[path]}")
        response = connection.getresponse()
        with (folder / path).open("wb", buffering=0) as file:
            while block := response.read(BLOCK_BYTES):
                file.write(block)
    connection.close()


_DIGESTS: dict[Path, dict[str, str]] = {}


def digests(bundle: Path) -> dict[str, str]:
    """Hashed once, before any clock runs."""
    if bundle not in _DIGESTS:
        _DIGESTS[bundle] = {path: sha256_of(bundle / path) for path in tree(bundle)}
    return _DIGESTS[bundle]


def _row(what: str, seconds: float, size: int) -> dict[str, str]:
    return {"what": what, f"seconds, median of {ROUNDS}": f"{seconds:.2f}", "MB/s": f"{size / seconds / 1e6:,.0f}"}
