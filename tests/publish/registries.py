"""A real registry for the tests: Debian's docker-registry, on a loopback port of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FETCHED = ROOT / ".peers" / "registry" / "usr" / "bin" / "docker-registry"


def program() -> str | None:
    """docker-registry on the PATH, or the one that ci/registry fetched."""
    return shutil.which("docker-registry") or (str(FETCHED) if FETCHED.is_file() else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRegistry:
    """`host` is 127.0.0.1:port; `folder` holds what was pushed, laid out as the registry likes it."""

    host: str
    folder: Path

    def blob(self, sha256: str) -> Path:
        """The file in which the registry keeps a blob."""
        return self.folder / "docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"


def fast_disk() -> Path | None:
    """A folder in memory, since the registry waits for the disk after every blob; None where there is none."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    executable: str, folder: Path, *, tls: tuple[Path, Path] | None = None, users: str | None = None
) -> Iterator[RunningRegistry]:
    """The registry, until the block ends. `tls`: certificate and key; `users`: who may, as lines of htpasswd."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    lines = ["version: 0.1", "log: {level: error, accesslog: {disabled: true}}"]
    lines += [f"storage: {{filesystem: {{rootdirectory: '{folder / 'data'}'}}}}"]
    http = f"addr: '127.0.0.1:{port}', secret: tests"
    if tls is not None:
        http += f", tls: {{certificate: '{tls[0]}', key: '{tls[1]}'}}"
    lines += [f"http: {{{http}}}"]
    if users is not None:
        (folder / "users").write_text(users)
        lines += [f"auth: {{htpasswd: {{realm: tests, path: '{folder / 'users'}'}}}}"]
    configuration = folder / "config.yml"
    configuration.write_text("\n".join(lines) + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
    process = subprocess.Popen(
        [executable, "serve", str(configuration)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(process, port)
        yield RunningRegistry(host=f"127.0.0.1:{port}", folder=folder / "data")
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the registry did not start"
        time.sleep(0.05)
    raise AssertionError("the registry does not listen")
