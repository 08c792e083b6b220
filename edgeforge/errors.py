"""Every error a user of the toolchain can meet: what happened, the cure, and the exit code.

One class per cause, one exit code per class (the table is in docs/design of the command line). The
message is one sentence saying what happened and what was expected; `hint` says what to do next.
The command line's single boundary (`edgeforge.cli.console`) prints both; nothing else prints.
The embedded runtime has its own few errors in `edgeforge.runtime.errors`, with the same codes.
"""


class EdgeForgeError(Exception):
    """A foreseeable failure. `exit_code` is the process's exit status, `hint` the cure."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgeForgeError):
    """Options that contradict each other, or an output folder that exists."""

    exit_code = 2


class UnusableInput(EdgeForgeError):
    """A model, target, profile or data file that cannot be used."""

    exit_code = 3


class DoesNotFit(EdgeForgeError):
    """The model does not fit the target's memory."""

    exit_code = 4


class GateFailed(EdgeForgeError):
    """The candidate lost more accuracy than its target allows."""

    exit_code = 5


class IntegrityError(EdgeForgeError):
    """A hash, size or signature does not match."""

    exit_code = 6


class MissingDependency(EdgeForgeError):
    """A package, driver or device is not there."""

    exit_code = 7


class OutOfResources(EdgeForgeError):
    """The disk or the memory ran out."""

    exit_code = 8


class Interrupted(EdgeForgeError):
    """The user pressed Ctrl-C."""

    exit_code = 130
