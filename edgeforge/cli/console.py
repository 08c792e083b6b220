"""The one error boundary: every failure becomes `error: ...`, `hint: ...` on stderr and an exit code.

Results go to stdout, everything else to stderr. SIGTERM and SIGHUP unwind the program like Ctrl-C does, so that the
pipeline's own cleaning runs; the exit codes are 143 and 129 (128 + signal, as a shell would say), Ctrl-C gives 130.
"""

import errno
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import click

from edgeforge.errors import EdgeForgeError
from edgeforge.runtime.errors import BundleError

OUT_OF_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
OUT_OF_HANDLES = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE})
UNREACHABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
)
SIGPIPE_STATUS = 141  # what a shell reports for a program whose reader went away


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, unwinding the stack as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What the user is told about an exception."""

    exit_code: int
    message: str
    hint: str | None = None


def run_guarded(command: click.Command, argv: Sequence[str], *, prog_name: str = "edgeforge") -> int:
    """Run `command` and return the process's exit code; nothing but the exit code leaves this function."""
    debug = "--debug" in argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an odd file name or a small locale must not end the work
    try:
        with _signals_unwind():
            code = _invoke(command, argv, prog_name)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        return _leave_quietly()
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        if debug:
            traceback.print_exception(error)
        show_failure(failure)
        if not isinstance(error, KeyboardInterrupt):  # whose sentence has them
            for told in getattr(error, "__notes__", ()):
                note(told)
        return failure.exit_code


def explain(error: BaseException) -> Failure:
    """The sentence, cure and exit code for any exception."""
    match error:
        case EdgeForgeError() | BundleError():
            return Failure(exit_code=error.exit_code, message=error.message, hint=error.hint)
        case click.ClickException():
            return _explain_usage(error)
        case Terminated():
            return Failure(exit_code=128 + error.number, message=f"terminated, {_left(error)}")
        case KeyboardInterrupt() | click.Abort():
            return Failure(exit_code=130, message=f"interrupted, {_left(error)}")
        case MemoryError():
            return Failure(exit_code=8, message="out of memory", hint="close other programs, or use a larger machine")
        case ModuleNotFoundError() if error.name and not error.name.startswith("edgeforge"):
            return _explain_missing(error.name.partition(".")[0])
        case OSError():
            return _explain_os(error) or _bug(error)
        case _:
            return _bug(error)


def _left(error: BaseException) -> str:
    """What the interrupted work says it left, else that it left nothing."""
    return next(iter(getattr(error, "__notes__", [])), "nothing was left behind")


def show_failure(failure: Failure) -> None:
    """`error:` and `hint:` lines on stderr; silent when stderr itself is gone."""
    try:
        click.echo(f"{paint('error:', 'red', sys.stderr)} {failure.message}", err=True)
        if failure.hint:
            click.echo(f"{paint('hint:', 'cyan', sys.stderr)} {failure.hint}", err=True)
    except OSError:
        return


def note(message: str) -> None:
    """One line for the user that is not a result."""
    click.echo(message, err=True)


def emit_json(document: Mapping[str, object]) -> None:
    """The one JSON object of a `--json` run, on stdout. NaN is refused: it is not JSON."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def coloured(stream: object) -> bool:
    """Whether to colour: a terminal that can, and a user who did not set NO_COLOR (https://no-color.org)."""
    isatty = getattr(stream, "isatty", None)
    return bool(
        isatty is not None and isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"
    )


def paint(text: str, colour: str, stream: object) -> str:
    return click.style(text, fg=colour, bold=True) if coloured(stream) else text


def _invoke(command: click.Command, argv: Sequence[str], prog_name: str) -> int:
    # Not Command.main: it turns a broken pipe into exit code 1, and SIGTERM into Ctrl-C.
    complete_var = f"_{prog_name.upper()}_COMPLETE"
    instruction = os.environ.get(complete_var)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(command, {}, prog_name, complete_var, instruction)
    try:
        with command.make_context(prog_name, list(argv)) as ctx:
            command.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


AGAIN_S = 0.2


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated in the main thread; what the parent ignores (nohup) stays ignored."""

    asked: list[int] = []

    def unwind(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        raise Terminated(number)

    def again(number: int, frame: FrameType | None) -> None:
        # What is raised inside a destructor is lost. Where nothing unwinds yet, it was.
        if not isinstance(sys.exc_info()[1], Terminated):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
            raise Terminated(asked[-1])

    previous = {}
    try:
        previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, again)
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is signal.SIG_DFL:
                previous[number] = signal.signal(number, unwind)
    except ValueError:  # not the main thread (a test, a notebook): signals are somebody else's
        previous.clear()
    try:
        yield
    finally:
        if previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_quietly() -> int:
    # Python flushes stdout once more on the way out; give it somewhere to write.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
    return SIGPIPE_STATUS


def _explain_usage(error: click.ClickException) -> Failure:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "edgeforge"
    message = error.format_message().rstrip(".")
    return Failure(exit_code=error.exit_code, message=message, hint=f"`{path} --help` lists what it takes")


def _explain_missing(package: str) -> Failure:
    return Failure(
        exit_code=7,
        message=f"the Python package {package} is not installed",
        hint=f"python -m pip install {package}",
    )


def _explain_os(error: OSError) -> Failure | None:
    name = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename or b"")
    place = f": {name}" if name else ""
    if error.errno in OUT_OF_DISK:
        hint = "free some space, or write to another disk with --out"
        return Failure(exit_code=8, message=f"no space left on the disk{place}", hint=hint)
    if error.errno in OUT_OF_HANDLES:
        return Failure(exit_code=8, message=f"the system ran out of resources ({error.strerror}){place}")
    if error.errno in UNREACHABLE:
        hint = "check the path, its permissions and its disk"
        return Failure(exit_code=3, message=f"{error.strerror}{place}", hint=hint)
    return None


def _bug(error: BaseException) -> Failure:
    lines = traceback.format_exception_only(error)
    what = "".join(lines[: len(lines) - len(getattr(error, "__notes__", ()))]).strip().splitlines()[-1]
    hint = "run it again with --debug and report the traceback"
    return Failure(exit_code=1, message=f"this is a bug in EdgeForge: {what}", hint=hint)
