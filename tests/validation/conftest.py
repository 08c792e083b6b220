"""Answers on text are stored between runs; a test has a store of its own."""

from pathlib import Path

import pytest

from edgeforge.validation import reference_store


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this test's stored answers. (EDGEFORGE_CACHE stays: the demo model lies there.)"""
    folder = tmp_path / "stored-answers"
    monkeypatch.setattr(reference_store, "root", lambda: folder)
    return folder
