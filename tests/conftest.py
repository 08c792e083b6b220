"""Fixtures that every test may use: the shared data folder and the two real models."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The read-only data folder (EDGEFORGE_TEST_DATA, default ../shared/data beside the project)."""
    folder = Path(os.environ.get("EDGEFORGE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no test data: set EDGEFORGE_TEST_DATA to the folder that holds models/, calibration/, configs/")
    return folder


@pytest.fixture(scope="session")
def stories(test_data: Path) -> Path:
    """stories260k: a true fp32 Llama of 260,032 parameters, in Hugging Face layout."""
    return test_data / "models" / "stories260k"


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """SmolLM2-135M-Instruct as Q4_1, fetched once into the user's cache and checked by hash."""
    from edgeforge.model.hub import demo_gguf as fetch

    return fetch()
