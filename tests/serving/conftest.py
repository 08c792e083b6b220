from collections.abc import Iterator
from pathlib import Path

import pytest
from served import CONTEXT, Live, client_of, listening
from starlette.testclient import TestClient
from tiny_bundle import Shape, make_bundle

from edgeforge import runtime
from edgeforge.runtime.model import Model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", Shape(context=CONTEXT))


@pytest.fixture(scope="session")
def model(tiny: Path) -> Model:
    """Random weights, a token for each byte; it never says end-of-text where it is greedy."""
    return runtime.load(tiny, threads=1)


@pytest.fixture(scope="session")
def textual(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """As `model`, without a chat template."""
    return runtime.load(
        make_bundle(tmp_path_factory.mktemp("bundles") / "textual", Shape(context=64), chat=False), threads=1
    )


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[TestClient]:
    # One event loop for all requests: in a loop that ends with its request, an answer cannot give its slot back.
    with client_of(model) as client:
        yield client


@pytest.fixture(scope="module")
def live(model: Model) -> Iterator[Live]:
    with listening(model) as server:
        yield server
