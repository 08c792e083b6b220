"""The page at `/`: the files of the folder page/, and a policy under which nothing but they can run."""

import base64
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.resources import files

INDEX = "index.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFile:
    content: bytes
    media_type: str
    headers: Mapping[str, str]


def page_files() -> dict[str, PageFile]:
    """The files by their path on the server; empty where the page is not installed."""
    folder = files("edgeforge.serving") / "page"
    if not (folder / INDEX).is_file():
        return {}
    contents = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name[0] != "."}
    headers = {
        "Content-Security-Policy": policy_of(contents[INDEX].decode("utf-8")),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return {
        "/" if name == INDEX else f"/{name}": PageFile(
            content=content, media_type=mimetypes.guess_type(name)[0] or "application/octet-stream", headers=headers
        )
        for name, content in contents.items()
    }


class _Inline(HTMLParser):
    """Collects what stands between <script> or <style> and their ends."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag if tag in self.texts and "src" not in dict(attrs) else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside].append(data)


def policy_of(html: str) -> str:
    """Scripts and styles of the page itself by their hash, or from this server; it talks to this server only."""
    inline = _Inline()
    inline.feed(html)
    scripts = " ".join(["'self'", *map(_source_hash, inline.texts["script"])])
    styles = " ".join(["'self'", *map(_source_hash, inline.texts["style"])])
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
