"""Chunks of a file to a registry, each carried by `courier`, which finishes the one at hand when this process dies."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.structures import CaseInsensitiveDict

from edgeforge.errors import IntegrityError
from edgeforge.publish import courier
from edgeforge.publish.registry import CONNECT_SECONDS, READ_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """`count` bytes of `file` from `offset` on. `journal` is where the courier writes down how to go on."""

    file: Path
    offset: int
    count: int
    journal: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """A courier at work."""

    process: "subprocess.Popen[str]"

    def send(self, url: str, headers: Mapping[str, str], chunk: Chunk) -> requests.Response:
        """The registry's answer to a PATCH with the chunk; raises requests' ConnectionError as requests does."""
        order = {
            "url": url,
            "headers": dict(headers),
            "file": str(chunk.file.absolute()),
            "offset": chunk.offset,
            "count": chunk.count,
            "journal": str(chunk.journal.absolute()),
            "timeout_s": [CONNECT_SECONDS, READ_SECONDS],
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "the process that sends chunks has ended"}
        if answer.get("short"):
            raise IntegrityError(f"{chunk.file} became shorter while it was sent", hint="verify the bundle")
        if "error" in answer:
            raise requests.ConnectionError(answer["error"])
        return _response(url, answer)


@contextmanager
def carrier(lock: int) -> Iterator[Carrier]:
    """A courier that holds the open file `lock` too, so that the next push waits for its last chunk."""
    command = [sys.executable, "-P", courier.__file__]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # neither Ctrl-C nor a killed group ends it within a chunk
        pass_fds=(lock,),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Carrier(process=process)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _response(url: str, answer: Mapping[str, object]) -> requests.Response:
    response = requests.Response()
    response.url = url
    response.status_code = int(str(answer["status"]))
    response.reason = str(answer["reason"])
    headers = answer["headers"]
    response.headers = CaseInsensitiveDict(headers if isinstance(headers, dict) else {})
    response.raw = io.BytesIO(str(answer["body"]).encode())
    return response
