from pathlib import Path

import pytest
from tiny_bundle import make_bundle

from edgeforge import runtime
from edgeforge.runtime.model import Model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle that no test changes."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def model(tiny: Path) -> Model:
    return runtime.load(tiny, threads=1)
