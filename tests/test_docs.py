"""What the documents say is true: commands parse, snippets run, tables and links are those of the code."""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from built import Build

from edgeforge import errors
from edgeforge.cli.group import edgeforge

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
WORKFLOW = ROOT / "ci" / "github" / "bundles.yml"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def fenced(path: Path, language: str) -> list[str]:
    """The contents of a document's code blocks in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shell_lines(path: Path) -> Iterator[str]:
    if path.suffix == ".md":
        for block in fenced(path, "console"):
            yield from (line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ "))
    else:
        yield from (line.strip().removeprefix("run: ") for line in path.read_text(encoding="utf-8").splitlines())


def edgeforge_commands(path: Path) -> list[list[str]]:
    """The arguments of every `edgeforge ...` in a document's shell lines."""
    # A number in the workflow's environment, which is parsed as one.
    lines = [line.replace("$CHUNKS", "8") for line in shell_lines(path) if line.startswith("edgeforge ")]
    return [shlex.split(re.split(r" (?:>|\|\|?|&&) ", line)[0], comments=True)[1:] for line in lines]


def parse(command: click.Command, args: list[str], parent: click.Context | None, name: str) -> None:
    """Parse as Click does, down to the last command, and run nothing. Raises UsageError."""
    if not isinstance(command, click.Group):
        command.make_context(name, args, parent)
        return
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    child = command.get_command(context, args[0]) if args else None
    if child is not None:
        parse(child, args[1:], context, args[0])
    elif args and not args[0].startswith("-"):
        raise click.UsageError(f"there is no command {args[0]}")


@pytest.mark.parametrize("path", [*DOCUMENTS, WORKFLOW], ids=lambda path: path.name)
def test_every_command_in_a_document_parses(path: Path) -> None:
    for args in edgeforge_commands(path):
        parse(edgeforge, args, None, "edgeforge")


def test_the_parser_of_this_test_finds_commands_and_refuses_wrong_ones() -> None:
    assert len(edgeforge_commands(README)) > 8
    assert len(edgeforge_commands(WORKFLOW)) == 4
    for wrong in (["buidl"], ["build", "--targte", "cpu"], ["plan"], ["targets", "show"], ["build", "-t", "cpu", "x"]):
        with pytest.raises(click.UsageError):
            parse(edgeforge, wrong, None, "edgeforge")


def test_the_command_line_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tests" / "command_line_page.py")]
    page = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    assert (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8") == page, "the help changed: run ci/docs"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.is_file(), f"{path.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_readmes_table_of_targets_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tests" / "targets_table.py")]
    table = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    assert table in README.read_text(encoding="utf-8"), "targets changed: run ci/docs"


def test_the_readme_lists_every_exit_code() -> None:
    section = README.read_text(encoding="utf-8").partition("## Exit codes")[2].partition("\n## ")[0]
    listed = {int(code) for cell in re.findall(r"^\| ([0-9, ]+) \|", section, re.MULTILINE) for code in cell.split(",")}
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    raised = {value.exit_code for value in classes if issubclass(value, errors.EdgeForgeError)}
    assert listed == raised | {0, 143}


@pytest.mark.slow
@pytest.mark.parametrize("imported", ["edgeforge_runtime", "onnxruntime_genai"])
def test_the_readmes_python_answers(imported: str, demo_int4: Build, tmp_path: Path) -> None:
    if imported != "edgeforge_runtime" and importlib.util.find_spec(imported) is None:
        pytest.skip(f"{imported} is not installed")
    (snippet,) = [code for code in fenced(README, "python") if f"import {imported}" in code]
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "demo-cpu").symlink_to(demo_int4.bundle)
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The capital of France is Paris.\n")
    assert demo_int4.load().manifest, "the snippet left the bundle as it was"
