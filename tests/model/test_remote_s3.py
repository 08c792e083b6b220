"""`s3://` against a server that speaks S3: every byte of both directions counted by a relay before it.

s3fs pins older packages than the rest of the house, so it is not in .venv; run these tests with it beside:

    pip install --target /tmp/s3 --no-deps s3fs aiobotocore==2.26.0 botocore==1.41.5 boto3==1.41.5 s3transfer==0.15.0 \
        jmespath wrapt==1.17.3 aioitertools python-dateutil==2.9.0.post0 six moto==5.1.18 xmltodict responses \
        py-partiql-parser flask flask-cors werkzeug itsdangerous blinker
    PYTHONPATH=/tmp/s3 pytest tests/model/test_remote_s3.py
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from built import build_once
from sharded import weights_bytes, write_sharded
from test_remote import digests, read_all

from edgeforge.errors import IntegrityError, UnusableInput
from edgeforge.model.checkpoint import open_checkpoint

pytest.importorskip("s3fs", reason="no s3fs: see this file's first lines")
pytest.importorskip("moto.server", reason="no moto: see this file's first lines")


@dataclass(slots=True)
class Relay:
    """Between client and server; `moved_bytes` counts what went through, both ways."""

    host: str = ""
    moved_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        while block := _received(source):
            with self.lock:
                self.moved_bytes += len(block)
            sink.sendall(block)
        for end in (source, sink):
            with end:
                pass


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(1 << 16)
    except OSError:
        return b""


@contextmanager
def relaying(port: int) -> Iterator[Relay]:
    relay, listener = Relay(), socket.create_server(("127.0.0.1", 0))
    relay.host = f"127.0.0.1:{listener.getsockname()[1]}"

    def accept() -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            for ends in ((client, server), (server, client)):
                threading.Thread(target=relay.pump, args=ends, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharded(tmp_path_factory.mktemp("s3") / "Model")


@pytest.fixture
def bucket(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """s3://bucket/Model, by AWS's own environment variables."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket="bucket")
    for path in sharded.iterdir():
        client.upload_file(str(path), "bucket", f"Model/{path.name}")
    with relaying(port) as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{relay.host}")
        s3fs.S3FileSystem.clear_instance_cache()
        yield relay
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_build_from_s3_is_the_local_one_and_each_byte_crosses_the_wire_once(
    sharded: Path, bucket: Relay, tmp_path: Path
) -> None:
    local = build_once(tmp_path / "local", str(sharded), target="h100", scheme="fp8", context=64)
    there = build_once(tmp_path / "remote", "s3://bucket/Model", target="h100", scheme="fp8", context=64)
    assert digests(there.bundle) == digests(local.bundle)
    print(f"{bucket.moved_bytes:,} bytes moved for {weights_bytes(sharded):,} of weights")
    assert bucket.moved_bytes <= 1.05 * weights_bytes(sharded)


def test_an_object_that_is_replaced_is_an_integrity_error(bucket: Relay) -> None:
    import boto3

    checkpoint = open_checkpoint("s3://bucket/Model")
    client = boto3.client("s3", endpoint_url=f"http://{bucket.host}")
    client.put_object(Bucket="bucket", Key="Model/model-2-of-2.safetensors", Body=b"another")
    with pytest.raises(IntegrityError, match="was replaced"):
        read_all(checkpoint)


def test_what_is_not_in_the_bucket_is_named(bucket: Relay) -> None:
    with pytest.raises(UnusableInput, match="s3://bucket/Nothing does not exist"):
        open_checkpoint("s3://bucket/Nothing")
    with pytest.raises(UnusableInput, match="s3://other/Model"):
        open_checkpoint("s3://other/Model")
