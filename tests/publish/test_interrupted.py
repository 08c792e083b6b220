"""What was killed goes on where it stopped, and nothing half-written looks whole."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from faults import Fault, Proxy, Request
from published import LICENCE, PROGRAM, Run, contents, document, incompressible, only, with_file
from registries import RunningRegistry
from tiny_bundle import make_bundle

from edgeforge.runtime.integrity import sha256_of

PLAIN = "--plain-http"
KILLS = 20
BIG = 40 << 20
CHUNK = 1 << 20
SETTLING_S = 0.05  # on a busy machine the program has not read yet what passed


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a file of 40 chunks."""
    bundle = make_bundle(tmp_path_factory.mktemp("bundles") / "big", notices=LICENCE)
    return with_file(bundle, "model/extra.data", incompressible(BIG))


def killed(arguments: list[object], environment: dict[str, str], when: "Trigger") -> bool:
    """Whether the command was killed; when it was not, it had finished before."""
    command = [*PROGRAM, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        when.process = process
        if when.delay_s is not None:
            time.sleep(when.delay_s)
            process.kill()
        _, error = process.communicate(timeout=120)
        when.process = None
    assert process.returncode in (0, -signal.SIGKILL), error
    return process.returncode != 0


class Trigger:
    """Kills a process when `count` more bytes have passed the proxy and it had `settling_s` to take them in, or after a
    time.
    """

    def __init__(self, proxy: Proxy, count: int, delay_s: float | None, settling_s: float = 0.0) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.delay_s = delay_s
        self.settling_s = settling_s
        self.limit = proxy.passed_bytes + count if delay_s is None else None
        proxy.uploading = proxy.downloading = self.passed

    def passed(self, total: int) -> None:
        if self.limit is not None and total >= self.limit and self.process is not None:
            time.sleep(self.settling_s)
            self.process.kill()


@pytest.mark.slow
def test_a_push_killed_at_twenty_points_goes_on_each_time(
    registry: RunningRegistry, proxy: Proxy, run: Run, environment: dict[str, str], big: Path, tmp_path: Path
) -> None:
    """Twenty SIGKILLs at random bytes and random times within one push: what the registry got is little more than the
    bundle, and the bundle is what comes back.
    """
    chance = random.Random(8)
    reference = f"oci://{proxy.host}/killed/push:1"
    push = ["publish", big, reference, PLAIN, "--chunk-mib", 1]
    kills = 0
    for number in range(KILLS):
        delay_s = chance.uniform(0.05, 0.4) if number in (3, 7) else None
        kills += killed(push, environment, Trigger(proxy, chance.randrange(CHUNK), delay_s))
    assert kills == KILLS
    done = document(run(*push, "--json"))
    assert proxy.uploaded_bytes <= BIG + 2 * CHUNK
    proxy.forget()
    assert document(run("pull", reference, tmp_path / "got", PLAIN, "--json"))["digest"] == done["digest"]
    assert contents(tmp_path / "got") == contents(big)


@pytest.mark.slow
def test_a_pull_killed_at_twenty_points_goes_on_each_time(
    registry: RunningRegistry, proxy: Proxy, run: Run, environment: dict[str, str], big: Path, tmp_path: Path
) -> None:
    reference = f"oci://{proxy.host}/killed/pull:1"
    document(run("publish", big, reference, PLAIN, "--json"))
    chance = random.Random(9)
    pull = ["pull", reference, tmp_path / "got", PLAIN]
    proxy.forget()
    kills = 0
    for number in range(KILLS):
        delay_s = chance.uniform(0.05, 0.3) if number in (3, 7) else None
        kills += killed(pull, environment, Trigger(proxy, chance.randrange(3 * CHUNK), delay_s, SETTLING_S))
        assert not (tmp_path / "got").exists()
    assert kills == KILLS
    done = document(run(*pull, "--json"))
    assert done["resumed_bytes"] > 0
    assert contents(tmp_path / "got") == contents(big)
    only(tmp_path, ["cache", "docker", "got"])
    # What was on its way when the process died is lost with its connection; what was written is never asked for again.
    starts = [
        int(request.headers["Range"][len("bytes=") : -1]) for request in proxy.requests if "Range" in request.headers
    ]
    assert len(starts) >= KILLS // 4
    assert starts == sorted(starts)
    assert done["resumed_bytes"] + done["received_bytes"] == done["size_bytes"]


def test_ctrl_c_during_a_pull_says_that_it_can_go_on(
    registry: RunningRegistry, proxy: Proxy, run: Run, environment: dict[str, str], large: Path, tmp_path: Path
) -> None:
    reference = f"oci://{proxy.host}/interrupted/pull:1"
    document(run("publish", large, reference, PLAIN, "--json"))
    proxy.fault = lambda request: Fault(pause_s=0.5) if request.is_blob else None
    command = [*PROGRAM, "pull", reference, str(tmp_path / "got"), PLAIN]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while not any((tmp_path / ".got.pull").glob("blobs/*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "goes on there" in error
    assert not (tmp_path / "got").exists()
    proxy.fault = lambda request: None
    document(run("pull", reference, tmp_path / "got", PLAIN, "--json"))
    assert contents(tmp_path / "got") == contents(large)


def test_a_connection_that_is_cut_again_and_again_costs_little(
    registry: RunningRegistry, proxy: Proxy, run: Run, large: Path, tmp_path: Path
) -> None:
    """Every response ends after 3 MiB: the 12 MiB come in four."""
    reference = f"oci://{proxy.host}/cut/pull:1"
    document(run("publish", large, reference, PLAIN, "--json"))
    proxy.forget()
    proxy.fault = lambda request: Fault(cut=3 << 20) if request.is_blob else None
    done = document(run("pull", reference, tmp_path / "got", PLAIN, "--json"))
    assert contents(tmp_path / "got") == contents(large)
    assert proxy.downloaded_bytes < 13 << 20
    ranges = [request.headers["Range"] for request in proxy.requests if "Range" in request.headers]
    assert ranges == [f"bytes={count << 20}-" for count in (3, 6, 9)]
    assert done["received_bytes"] == done["size_bytes"]


def test_a_registry_without_ranges_sends_the_whole_again(
    registry: RunningRegistry, proxy: Proxy, run: Run, large: Path, tmp_path: Path
) -> None:
    reference = f"oci://{proxy.host}/noranges/pull:1"
    document(run("publish", large, reference, PLAIN, "--json"))
    cuts = iter([5 << 20])

    def fault(request: Request) -> Fault | None:
        return Fault(cut=next(cuts, None), forget_range=True) if request.is_blob else None

    proxy.fault = fault
    document(run("pull", reference, tmp_path / "got", PLAIN, "--json"))
    assert contents(tmp_path / "got") == contents(large)
    assert next(cuts, None) is None, "nothing was cut"


def test_what_a_cut_pull_left_is_not_trusted(registry: RunningRegistry, run: Run, large: Path, tmp_path: Path) -> None:
    """The beginning of the file is wrong: that is noticed, and the file fetched whole."""
    reference = f"oci://{registry.host}/wrongpart/pull:1"
    document(run("publish", large, reference, PLAIN, "--json"))
    blobs = tmp_path / ".got.pull" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / sha256_of(large / "model/extra.data")).write_bytes(bytes(1 << 20))
    document(run("pull", reference, tmp_path / "got", PLAIN, "--json"))
    assert contents(tmp_path / "got") == contents(large)


def test_an_upload_that_the_registry_forgot_begins_anew(
    registry: RunningRegistry, proxy: Proxy, run: Run, large: Path
) -> None:
    """As after a restart of the registry, or a week."""
    forgotten = iter([True])

    def fault(request: Request) -> Fault | None:
        if request.method == "PATCH" and proxy.uploaded_bytes > 4 << 20 and next(forgotten, False):
            return Fault(status=404, body=b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')
        return None

    proxy.fault = fault
    done = document(run("publish", large, f"oci://{proxy.host}/forgot/push:1", PLAIN, "--chunk-mib", 1, "--json"))
    assert done["sent_bytes"] >= done["size_bytes"]
    assert run("publish", large, f"oci://{registry.host}/forgot/push:1", PLAIN).returncode == 0
