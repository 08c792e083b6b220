"""docs/embedding.md is one program in pieces: it runs from top to bottom, and prints what the page says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from built import Build

from examples.conftest import EXAMPLES

PAGE = EXAMPLES.parent / "docs" / "embedding.md"
MARK = "~~~ piece ~~~"


def pieces(text: str) -> list[tuple[str, str | None]]:
    """Every block of Python, with the block of output that follows it."""
    blocks = re.findall(r"^```python\n(.*?)^```\n(?:\n^```\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL)
    return [(code, output or None) for code, output in blocks]


def test_pieces_are_found_with_and_without_output() -> None:
    text = "```python\na\n```\n\n```\nout\n```\n\ntext\n\n```python\nb\n```\n\ntext\n"
    assert pieces(text) == [("a\n", "out\n"), ("b\n", None)]


@pytest.mark.slow
def test_the_page_prints_what_it_says(demo_int4: Build, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    found = pieces(PAGE.read_text(encoding="utf-8"))
    assert len(found) >= 7
    program = "".join(f"{code}\nprint({MARK!r}, flush=True)\n" for code, _ in found)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "demo-cpu").symlink_to(demo_int4.bundle)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"{MARK}\n")[:-1]
    for (code, expected), output in zip(found, printed, strict=True):
        assert expected is None or output == expected, code
    assert demo_int4.load().manifest, "the page left the bundle as it was"
