"""What a user installs is the wheel, not this tree: it must carry the targets, the profiles and the built-in text."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unpacked_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_runs_away_from_the_tree(unpacked_wheel: Path, tmp_path: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(unpacked_wheel)!r}); from edgeforge.cli import main; main()"
    command = [sys.executable, "-c", script, "targets", "show", "cpu", "--json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert '"cpu"' in result.stdout


def test_the_wheel_carries_every_data_file_of_the_package(unpacked_wheel: Path) -> None:
    data = [p for p in (ROOT / "edgeforge").rglob("*") if p.is_file() and p.suffix not in (".pyc",)]
    missing = [p.relative_to(ROOT) for p in data if not (unpacked_wheel / p.relative_to(ROOT)).is_file()]
    assert not missing
    for folder in ("targets", "profiles"):
        names = {p.name for p in (ROOT / folder).glob("*.toml")}
        assert names == {p.name for p in (unpacked_wheel / "edgeforge" / "_data" / folder).glob("*.toml")}
