"""The whole way: built here, published, and pulled and run by another user's application that has not got EdgeForge."""

import re
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from built import Build
from other_user import USER, OtherUser, environment, needs, other_user
from packaging.requirements import Requirement
from published import Run, contents, document
from registries import ROOT, RunningRegistry

PUBLISHED = "oci://registry.example.com/models/demo:1.0"
TOOL = "#!{}\nfrom edgeforge.cli import main\nmain()\n"


@pytest.fixture(scope="module")
def device() -> Iterator[OtherUser]:
    """Outside pytest's own folders, which nobody else may read."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield other_user(Path(name) / "home")


@pytest.fixture(scope="module")
def tools(device: OtherUser, wheel: Path) -> Path:
    """Where the device has `edgeforge`: installed from the wheel, with what `pull` needs."""
    folder = device.home.parent / "tools"
    site = environment(folder, device.python, needs(distribution("edgeforge"), "publish"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = folder / "bin" / "edgeforge"
    program.write_text(TOOL.format(folder / "bin" / "python"))
    program.chmod(0o755)
    return folder / "bin"


def app(reference: str) -> str:
    """The app of docs/publish.md, for a registry on loopback."""
    page = (ROOT / "docs" / "publish.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert PUBLISHED in code
    return str(code).replace(f'"{PUBLISHED}"', f'"{reference}", "--plain-http"')


@pytest.mark.slow
def test_another_users_app_pulls_and_runs_what_was_built_here(
    registry: RunningRegistry, run: Run, demo_int4: Build, device: OtherUser, tools: Path
) -> None:
    reference = f"oci://{registry.host}/models/demo:1.0"
    document(run("publish", demo_int4.bundle, reference, "--plain-http", "--json"))
    card = (demo_int4.bundle / "README.md").read_text(encoding="utf-8")
    (wanted,) = re.findall(r"^pip install (.*)$", card, re.MULTILINE)
    environment(device.home.parent / "own", device.python, [Requirement(name) for name in wanted.split()])
    python = device.home.parent / "own" / "bin" / "python"
    assert "No module named 'edgeforge'" in device.run(python, "-c", "import edgeforge").stderr
    done = device.run(python, "-c", app(reference), path=str(tools))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("The capital of France is Paris.")
    pulled = device.home / "models" / "demo"
    assert contents(pulled) == contents(demo_int4.bundle)
    assert {path.stat().st_uid for path in pulled.rglob("*")} == {USER}
    # And as the command line has it: `python BUNDLE` with nothing else, and the proof that nothing was left in it.
    answer = device.run(python, pulled, "What is the capital of France?")
    assert answer.stdout == "The capital of France is Paris.\n", answer.stderr
    checked = device.run("edgeforge", "verify", pulled, path=str(tools))
    assert checked.returncode == 0, checked.stderr
