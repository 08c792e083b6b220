"""The command line as a whole: the table of commands, help, and what a wrong word is answered with."""

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from edgeforge import __version__
from edgeforge.cli.console import run_guarded
from edgeforge.cli.group import COMMANDS, edgeforge


@pytest.fixture(scope="module", params=sorted(COMMANDS))
def command(request: pytest.FixtureRequest) -> click.Command:
    found = edgeforge.get_command(click.Context(edgeforge), request.param)
    assert found is not None
    return found


def test_every_command_of_the_table_has_help_with_examples(command: click.Command) -> None:
    result = CliRunner().invoke(command, ["--help"], prog_name=f"edgeforge {command.name}")
    assert result.exit_code == 0, result.output
    assert "Examples:" in result.output or "Example:" in result.output
    assert f"edgeforge {command.name}" in result.output.split("xample", 1)[1]


def test_every_command_accepts_debug_where_people_type_it(command: click.Command) -> None:
    assert any("--debug" in parameter.opts for parameter in command.params)


def test_every_options_help_says_something(command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.show_default, f"{command.name} {parameter.opts}"


def test_help_lists_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(edgeforge, ["--help"]) == 0
    out = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert f"  {name} " in out
        assert entry.summary in out
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 130, 143):
        assert f"{code} " in out


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(edgeforge, []) == 0
    assert "Commands:" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(edgeforge, ["--version"]) == 0
    assert capsys.readouterr().out == f"edgeforge {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["biuld"], "there is no command 'biuld'; did you mean 'build'?"),
        (["xyzzy"], "there is no command 'xyzzy'\n"),
        (["build", "--taget", "cpu"], "No such option '--taget'"),
        (["build"], "Missing option '-t' / '--target'"),
        (["build", "--target", "cpu", "--scheme", "w3a16"], "'w3a16' is not one of"),
        (["run", "bundle"], "Missing argument 'PROMPT'"),
        (["bench", "bundle", "--repeats", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_word_is_usage_and_says_which(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_guarded(edgeforge, arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "hint: `edgeforge" in captured.err


def test_completion_offers_commands_and_choices() -> None:
    def complete(words: str, position: int) -> str:
        environment = {
            **os.environ,
            "_EDGEFORGE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(position),
        }
        program = [sys.executable, "-m", "edgeforge.cli"]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout

    assert complete("edgeforge val", 1) == "plain,validate\n"
    assert complete("edgeforge build --scheme w", 3) == "plain,w4a16\nplain,w6a16\nplain,w8a16\nplain,w4a8\n"
