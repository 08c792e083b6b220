"""Prints docs/command-line.md, made of the commands' own help pages. `ci/docs` writes it, tests/test_docs.py compares.

A program, not a function: Click keeps each command's help option as the first context that asked for it had it.
"""

from collections.abc import Iterator

import click

from edgeforge.cli.group import edgeforge

WIDTH = 100
HEAD = """\
# The command line

<!-- Written by ci/docs from the commands' own help. Do not edit. -->
"""


def page() -> str:
    """The whole file."""
    sections = [f"## {path}\n\n```text\n{text}\n```\n" for path, text in _help_pages(edgeforge, None, "edgeforge")]
    return "\n".join([HEAD, *sections])


def _help_pages(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    """(what is typed, its help page), the groups before their commands."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, **command.context_settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _help_pages(found, context, child)


if __name__ == "__main__":
    print(page(), end="")
