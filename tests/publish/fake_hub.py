"""As much of the Hugging Face hub as huggingface_hub asks for: repositories, commits, LFS, downloads by revision.

Written after huggingface_hub 0.36 (hf_api.py, _commit_api.py, lfs.py, file_download.py). One thread a connection, on
loopback, everything in memory.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 4096  # files from here on go by LFS
Tree = dict[str, bytes]


@dataclass(slots=True, kw_only=True)
class Repository:
    """Commits by id, and the branches and tags that name them."""

    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, name: str, tree: Tree) -> str:
        oid = hashlib.sha1(repr((name, sorted(tree), len(self.commits))).encode()).hexdigest()
        self.commits[oid] = tree
        self.names[name] = oid
        return oid

    def find(self, revision: str) -> str | None:
        oid = self.names.get(revision, revision)
        return oid if oid in self.commits else None


@dataclass(slots=True, kw_only=True)
class FakeHub:
    """`cut`: how many bytes of a large file are served before the connection ends; `deny`: a status for every write."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    uploaded: list[int] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    served_bytes: int = 0
    cut: int | None = None
    deny: int | None = None


@contextmanager
def serving() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            self._tree(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._json({"error": f"no {path}"}, 404)

    do_HEAD = do_GET  # noqa: N815  (http.server's name)

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        body = self._body()
        self.state.uploaded.append(len(body))
        if hashlib.sha256(body).hexdigest() != oid:
            self._json({"error": "wrong content"}, 400)
            return
        self.state.objects[oid] = body
        self._json({})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if self.state.deny is not None:
            self._json({"error": "denied"}, self.state.deny)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            repository = self.state.repositories[match[1]]
            known = match[2] in repository.names
            repository.names.setdefault(match[2], repository.names["main"])
            self._json({}, 409 if known else 200)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "lfs" if one["size"] >= LARGE else "regular"} for one in files]
            self._json({"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body)["objects"])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": f"no {path}"}, 404)

    def _create(self, asked: dict[str, str]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        known = name in self.state.repositories
        if not known:
            repository = self.state.repositories[name] = Repository(private=bool(asked.get("private")))
            repository.commit("main", {".gitattributes": b"*.data filter=lfs\n"})
        self._json({"url": f"{self.state.url}/{name}", "error": "exists"}, 409 if known else 200)

    def _batch(self, objects: list[dict[str, object]]) -> None:
        answer = []
        for one in objects:
            missing = one["oid"] not in self.state.objects
            actions = {"actions": {"upload": {"href": f"{self.state.url}/lfs/{one['oid']}"}}} if missing else {}
            answer.append({"oid": one["oid"], "size": one["size"], **actions})
        self._json({"transfer": "basic", "objects": answer})

    def _commit(self, name: str, branch: str, operations: list[dict[str, dict[str, str]]]) -> None:
        repository = self.state.repositories[name]
        tree = dict(repository.commits[repository.names[branch]])
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    tree[value["path"]] = self.state.objects[value["oid"]]
                case "deletedFile":
                    del tree[value["path"]]
        oid = repository.commit(branch, tree)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.state.url}/{name}/commit/{oid}"})

    def _found(self, name: str, revision: str) -> tuple[str, Tree] | None:
        repository = self.state.repositories.get(name)
        oid = None if repository is None else repository.find(revision)
        if repository is None or oid is None:
            code = "RepoNotFound" if repository is None else "RevisionNotFound"
            self._json({"error": code}, 404, {"X-Error-Code": code})
            return None
        return oid, repository.commits[oid]

    def _info(self, name: str, revision: str) -> None:
        if found := self._found(name, revision):
            oid, tree = found
            siblings = [{"rfilename": path} for path in tree]
            self._json({"id": name, "modelId": name, "sha": oid, "siblings": siblings, "tags": [], "private": True})

    def _tree(self, name: str, revision: str) -> None:
        if found := self._found(name, revision):
            entries = []
            for path, content in found[1].items():
                sha256 = hashlib.sha256(content).hexdigest()
                lfs = (
                    {"lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}} if len(content) >= LARGE else {}
                )
                entries.append({"type": "file", "path": path, "size": len(content), "oid": sha256[:40], **lfs})
            self._json(entries)

    def _file(self, name: str, revision: str, path: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        oid, tree = found
        content = tree[path]
        start, stop = 0, len(content)
        asked = self.headers.get("Range")
        if asked:
            self.state.ranges.append(asked)
            first, last = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", asked).groups()
            start, stop = int(first), min(stop, int(last) + 1) if last else stop
        self.send_response(206 if asked else 200)
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        part = content[start:stop]
        if self.state.cut is not None and len(part) > self.state.cut:
            part = part[: self.state.cut]
            self.close_connection = True
        self.wfile.write(part)
        self.state.served_bytes += len(part)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
