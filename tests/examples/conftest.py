"""The demo, and what its own runtime answers: every example must say the same."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from built import Build
from filelock import FileLock

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class Asked:
    bundle: Path
    answer: str


@pytest.fixture(scope="session")
def asked(demo_int4: Build) -> Asked:
    """The demo, and its greedy answer to QUESTION."""
    chunks = demo_int4.load().chat([{"role": "user", "content": QUESTION}], temperature=0)
    answer = "".join(chunk.text for chunk in chunks)
    assert "Paris" in answer
    return Asked(bundle=demo_int4.bundle, answer=answer)


@pytest.fixture(scope="session")
def node() -> Path:
    """The example's folder with its packages, which npm fetches once."""
    folder = EXAMPLES / "node"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    with FileLock(folder / "node_modules.lock"):
        if not (folder / "node_modules" / "onnxruntime-node").is_dir():
            done = subprocess.run(["npm", "ci"], cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"npm could not fetch the example's packages: {done.stderr.strip()[-200:]}")
    return folder
