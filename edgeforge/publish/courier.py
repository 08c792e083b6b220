"""Brings one chunk after the other to a registry, and outlives the process that sends it by the chunk it carries.

A registry may forget an upload that is cut within a chunk (CNCF distribution does), and only its answer to a chunk says
where the upload goes on. So a process of its own sends each chunk and writes that answer down: whoever kills the push,
the next one finds an upload that ends with a whole chunk.

This file is run as a program, in a session of its own, and imports nothing of EdgeForge. Each line of its standard
input is a JSON object; the answer to it is a line of its standard output. It ends with its input.
"""

import json
import os
import secrets
import sys
from pathlib import Path
from urllib.parse import urljoin


def serve() -> None:
    """Answer every line. Nothing is told on stderr: the parent has the sentences."""
    import requests

    session = requests.Session()
    session.auth = lambda request: request  # an entry of ~/.netrc would take the place of our credentials
    for line in sys.stdin:
        order = json.loads(line)
        try:
            with open(order["file"], "rb", buffering=0) as file:
                file.seek(order["offset"])
                data = file.read(order["count"])
            if len(data) != order["count"]:
                answer: dict[str, object] = {"short": True}
            else:
                answer = _send(session, order, data)
        except (requests.RequestException, OSError) as error:
            answer = {"error": str(error)}
        try:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:  # nobody waits any more; what counts was written down
            os._exit(0)


def _send(session: object, order: dict[str, object], data: bytes) -> dict[str, object]:
    response = session.request(  # type: ignore[attr-defined]
        "PATCH",
        order["url"],
        data=data,
        headers=order["headers"],
        allow_redirects=False,
        timeout=tuple(order["timeout_s"]),  # type: ignore[arg-type]
    )
    if response.status_code in (202, 204) and "Location" in response.headers:
        _write_down(Path(str(order["journal"])), urljoin(str(order["url"]), response.headers["Location"]))
    return {
        "status": response.status_code,
        "reason": response.reason,
        "headers": dict(response.headers),
        "body": response.text[:10_000],
    }


def _write_down(path: Path, location: str) -> None:
    """As `edgeforge.publish.journal` writes it."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"location": location}, file)
    os.replace(partial, path)


if __name__ == "__main__":
    serve()
