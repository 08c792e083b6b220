"""What the user types in a chat: messages of one or several lines, with editing and a history over sessions."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import click

LONGEST_HISTORY = 1000  # lines
QUOTES = '"""'
FIRST, NEXT = ">>> ", "... "

Read = Callable[[str], str]
"""Asks for a line with a prompt, as `input` does: EOFError where there is none any more."""


def read_message(read: Read) -> str:
    """One message: a backslash at a line's end joins the next one, three quotes enclose several lines.

    EOFError where there is none any more.
    """
    line = read(FIRST)
    if line.lstrip().startswith(QUOTES):
        return _read_quoted(line.lstrip().removeprefix(QUOTES), read)
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{_read_more(read) or ''}"
    return line


def _read_quoted(line: str | None, read: Read) -> str:
    lines = []
    while line is not None and not line.rstrip().endswith(QUOTES):
        lines.append(line)
        line = _read_more(read)
    last = [] if line is None else [line.rstrip().removesuffix(QUOTES)]
    return "\n".join([*lines, *last]).strip("\n")


def _read_more(read: Read) -> str | None:
    try:
        return read(NEXT)
    except EOFError:
        return None


def typed(read: Read = input) -> Iterator[str]:
    """Messages from a terminal: Ctrl-D ends them, Ctrl-C drops the one that was begun."""
    from edgeforge.cli.console import note

    while True:
        try:
            message = read_message(read)
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            note("\n(/exit or Ctrl-D leaves)")
            continue
        yield message


def piped(file: TextIO) -> Iterator[str]:
    """Messages from a file."""

    def read(prompt: str) -> str:
        line = file.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    with suppress(EOFError):
        while True:
            yield read_message(read)


@contextmanager
def editing(*, keep_history: bool) -> Iterator[None]:
    """`input` with cursor keys and, from session to session, with what was typed before."""
    try:
        import readline
    except ImportError:  # not on Windows
        yield
        return
    readline.parse_and_bind("set enable-bracketed-paste on")  # a text of several lines that is pasted is one message
    if not keep_history:
        yield
        return
    path = history_file()
    readline.set_history_length(LONGEST_HISTORY)
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with suppress(OSError):  # a chat does not fail for its history
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)


def history_file() -> Path:
    """In the XDG state folder."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "edgeforge" / "chat_history"
