"""What a user installs is the wheel, not this tree: it carries the targets, the profiles and the built-in text, is the
same bytes wherever it is built, and pip installs it.
"""

import os
import shutil
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


@pytest.mark.slow
def test_the_same_tree_is_the_same_wheel_and_source_archive(wheel: Path, tmp_path: Path) -> None:
    """Built from a copy with other times, and by way of the source archive, as `python -m build` does."""
    copy = tmp_path / "elsewhere"
    made = shutil.ignore_patterns(".*cache*", ".git", ".venv", ".peers", "__pycache__", "node_modules*")

    def skipped(folder: str, names: list[str]) -> set[str]:
        return made(folder, names) | ({"artifacts", "dist", "build"} if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, copy, ignore=skipped, copy_function=shutil.copy)
    for path in copy.rglob("*"):
        os.utime(path, (1e9, 1e9))
    for tree, out, only in ((copy, tmp_path / "there", []), (ROOT, tmp_path / "here", ["--sdist"])):
        command = [sys.executable, "-m", "build", "--no-isolation", *only, "--outdir", str(out), str(tree)]
        subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "there" / wheel.name).read_bytes() == wheel.read_bytes()
    (archive,) = (tmp_path / "here").iterdir()
    assert (tmp_path / "there" / archive.name).read_bytes() == archive.read_bytes()


@pytest.fixture(scope="module")
def installed(wheel: Path, without_edgeforge: Path) -> Path:
    """Where pip put `edgeforge`."""
    # pip sees ours, too.
    command = [without_edgeforge / "python", "-m", "pip", "install", "--no-index", "--no-deps", "--ignore-installed"]
    subprocess.run([*command, wheel], check=True, capture_output=True)
    return without_edgeforge


def in_shell(installed: Path, script: str, cwd: Path) -> str:
    environment = {**os.environ, "PATH": f"{installed}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(["bash", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_pip_installs_a_command_that_knows_its_targets(installed: Path, tmp_path: Path) -> None:
    assert '"rtx4090"' in in_shell(installed, "edgeforge targets --json", tmp_path)
    place = in_shell(installed, "python -c 'import edgeforge; print(edgeforge.__file__)'", tmp_path)
    assert place.startswith(str(installed.parent))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_for_completion_works(shell: str, installed: Path, tmp_path: Path) -> None:
    """bash runs it as the help writes it; of the others the script's words are looked at."""
    script = f"_EDGEFORGE_COMPLETE={shell}_source edgeforge"
    if shell == "bash":
        words = "COMP_WORDS=(edgeforge pub) COMP_CWORD=1; _edgeforge_completion edgeforge; echo ${COMPREPLY[@]}"
        script = f'eval "$({script})"; {words}'
    said = in_shell(installed, script, tmp_path)
    assert said == "publish\n" if shell == "bash" else f"{shell}_complete" in said
