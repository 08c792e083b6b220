"""OpenAI's client for Node against the server: chat, stream, tools, JSON Schema, errors, cancel."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock
from served import Live

from edgeforge.runtime.model import Model

FOLDER = Path(__file__).resolve().parent / "openai_node"


@pytest.fixture(scope="module")
def packages() -> Path:
    """The script's folder with its packages, which npm fetches once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    with FileLock(FOLDER / "node_modules.lock"):
        if not (FOLDER / "node_modules" / "openai").is_dir():
            done = subprocess.run(["npm", "ci"], cwd=FOLDER, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"npm could not fetch OpenAI's client: {done.stderr.strip()[-200:]}")
    return FOLDER


def test_openais_client_for_node_is_at_home(packages: Path, live: Live, model: Model) -> None:
    command = ["node", str(packages / "client.mjs"), live.url, "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["tokens"] == 12
    hello = [{"role": "user", "content": "Hello"}]
    assert seen["chat"] == "".join(chunk.text for chunk in model.chat(hello, max_new_tokens=12, temperature=0))
