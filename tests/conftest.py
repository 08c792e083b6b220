"""Fixtures that every test may use: the shared data folder, the two real models, and bundles built of them once."""

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import processors  # noqa: F401  # before anything that starts threads
import pytest
from built import Build, build_once
from hypothesis import HealthCheck, settings
from once import made_once

# A busy machine is no failure of the code under test.
settings.register_profile("edgeforge", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgeforge")

# A shell that runs this in the background has children ignore Ctrl-C, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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


@pytest.fixture(scope="session")
def demo_int4(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The demo as the cpu target builds it. Read it, do not change it."""
    return made_once(tmp_path_factory, "demo-int4", lambda folder: build_once(folder, "demo"))


@pytest.fixture(scope="session")
def demo_f32(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The demo unquantized, for at most 512 tokens."""
    return made_once(tmp_path_factory, "demo-f32", lambda folder: build_once(folder, "demo", scheme="f32", context=512))


@pytest.fixture(scope="session")
def stories_int4(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """stories260k as the cpu target builds it, in groups of 32 (its rows divide by no more)."""
    return made_once(tmp_path_factory, "stories-int4", lambda folder: build_once(folder, str(stories), group_size=32))


@pytest.fixture(scope="session")
def stories_f32(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return made_once(tmp_path_factory, "stories-f32", lambda folder: build_once(folder, str(stories), scheme="f32"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def without_edgeforge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtual environment that has all of ours but EdgeForge itself, and pip to install that."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")  # the .pth files in there are not read
    return folder / "bin"
