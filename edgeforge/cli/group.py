"""The root command and its table of commands; a command's module is imported when that command is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import click

from edgeforge import __version__

EXIT_CODES = """\b
Exit codes:
  0  done                                  5  accuracy gate failed
  1  a bug in EdgeForge                    6  integrity (a hash or signature)
  2  usage                                 7  missing dependency, driver or device
  3  unusable input (model, target, data)  8  out of disk or memory
  4  does not fit the target               130 Ctrl-C, 143 SIGTERM

\b
Shell completion, once per shell start-up file (zsh_source and fish_source likewise):
  eval "$(_EDGEFORGE_COMPLETE=bash_source edgeforge)"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a command lives: `edgeforge.cli.<module>`, and its attribute there."""

    module: str
    attribute: str
    summary: str


# In the order a user meets them. The summary stands here so that `--help` imports no command.
COMMANDS: Mapping[str, Entry] = {
    "build": Entry(module="build", attribute="build", summary="Build a verified bundle for a target."),
    "plan": Entry(module="plan", attribute="plan", summary="Predict memory, disk and speed; reads no weights."),
    "run": Entry(module="run", attribute="run", summary="Answer one prompt with a bundle."),
    "chat": Entry(module="chat", attribute="chat", summary="Talk with a bundle."),
    "serve": Entry(module="serve", attribute="serve", summary="Answer with a bundle over HTTP, as OpenAI's interface."),
    "validate": Entry(module="validate", attribute="validate", summary="Compare a bundle with its original."),
    "bench": Entry(module="bench", attribute="bench", summary="Measure a bundle's speed and memory."),
    "verify": Entry(module="verify", attribute="verify", summary="Check every byte of a bundle, and its signature."),
    "sign": Entry(module="sign", attribute="sign", summary="Sign a bundle with a key or an identity."),
    "publish": Entry(module="publish", attribute="publish", summary="Publish bundles to a registry or the hub."),
    "pull": Entry(module="pull", attribute="pull", summary="Fetch a published bundle, verified."),
    "inspect": Entry(module="inspect", attribute="inspect", summary="Show what a model or bundle holds."),
    "targets": Entry(module="targets", attribute="targets", summary="List targets, or show one."),
    "cache": Entry(module="cache", attribute="cache", summary="List or prune what is kept between runs."),
    "doctor": Entry(module="doctor", attribute="doctor", summary="Check what this machine can build and run."),
}


class LazyGroup(click.Group):
    """A group whose commands are rows of a table (a class because Click asks for one)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(f"edgeforge.cli.{entry.module}"), entry.attribute)
        assert isinstance(command, click.Command)
        _accept_debug(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As Click's, but an unknown name is answered with the nearest ones."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            did_you_mean = f"; did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"there is no command '{args[0]}'{did_you_mean}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _debug_option() -> click.Option:
    # The boundary looks for the word itself, so that it also works for errors made while parsing.
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")


def _accept_debug(command: click.Command) -> None:
    """Let `--debug` stand after the command too, where people type it."""
    if not any("--debug" in parameter.opts for parameter in command.params):
        command.params.append(_debug_option())
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _accept_debug(child)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    params=[_debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="edgeforge", message="%(prog)s %(version)s")
@click.pass_context
def edgeforge(ctx: click.Context) -> None:
    """Take a Llama checkpoint to one named piece of hardware, and prove that it still answers like the original.

    \b
    Examples:
      edgeforge build --target cpu --model demo
      edgeforge run artifacts/demo-cpu "What is the capital of France?"
      edgeforge plan --target h100 --model meta-llama/Llama-3.1-8B-Instruct
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
