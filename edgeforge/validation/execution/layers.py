"""Which layers of isolation this system allows, found out by running a program in them, and their plain names."""

import sys
from functools import cache

from edgeforge.errors import MissingDependency
from edgeforge.validation.execution.launch import launch
from edgeforge.validation.execution.outcome import DEFAULT

# layer: (in force, not in force)
PHRASES = {
    "user": ("runs as a user of its own, without capabilities", "runs as the user who validates"),
    "userns": ("in a user namespace of its own, without capabilities outside", "no user namespace"),
    "pid": (
        "in a PID namespace: sees no other process, and ends with all it started",
        "no PID namespace: what it starts is found and ended by its ancestry",
    ),
    "net": ("in a network namespace without any interface", "no network namespace"),
    "ipc": ("in an IPC namespace of its own", "no IPC namespace"),
    "uts": ("does not learn the machine's name", "learns the machine's name"),
    "root": (
        "a root folder of its own: the interpreter, read-only, and a working folder in memory; no home, /proc or /sys",
        "no root folder of its own",
    ),
    "landlock": (
        "Landlock: reads the interpreter, writes its working folder, nothing else",
        "no Landlock",
    ),
    "seccomp": (
        "seccomp: no sockets, tracing, mounts, namespaces, keys, BPF or io_uring",
        "no seccomp filter",
    ),
    "guard": (
        "in the interpreter: hooks refuse sockets, other programs and ctypes (an obstacle, not a wall)",
        "no hooks in the interpreter",
    ),
}
ALWAYS = "limits on processor time, wall clock, memory, processes, files and output; an empty environment"
# Given up one after the other where a program does not even start in all that the kernel grants.
GIVEN_UP = ("root", "landlock", "seccomp")


def isolation() -> tuple[str, ...]:
    """What contains a program on this system, one phrase each; what does not, each beginning with "not in force: ".

    Raises MissingDependency where programs cannot be run at all.
    """
    layers = layers_here()
    held = [PHRASES[name][0] for name in PHRASES if name in layers]
    # Root takes another user, anybody else a user namespace: of these two one is enough.
    substitutes = {"userns"} if "user" in layers else {"user"} if "userns" in layers else set()
    missing = [PHRASES[name][1] for name in PHRASES if name not in layers and name not in substitutes]
    return (*held, ALWAYS, *(f"not in force: {phrase}" for phrase in missing), *_consequences(layers))


def _consequences(layers: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    if "net" not in layers and "seccomp" not in layers:
        found.append("not in force: a wall against the network (the interpreter's hooks alone refuse it)")
    if "root" not in layers and "landlock" not in layers:
        found.append("not in force: a wall around the user's files (the interpreter's hooks alone refuse them)")
    if "root" not in layers:
        found.append("not in force: a bound on all files together (each file has one)")
    return tuple(found)


@cache
def layers_here() -> tuple[str, ...]:
    """The names of the layers that can be put in force here. Every later program runs in exactly these."""
    return layers_without(frozenset())


def layers_without(unavailable: frozenset[str]) -> tuple[str, ...]:
    """As on a system that lacks some: for tests of what remains."""
    if sys.platform != "linux":
        raise MissingDependency(
            "generated programs can be run contained on Linux only", hint="leave out tasks that run code"
        )
    wanted = [name for name in PHRASES if name not in unavailable]
    for given_up in ("", *GIVEN_UP):
        wanted = [name for name in wanted if name != given_up]
        answer = launch("pass", DEFAULT, wanted, exact=False)
        if answer.outcome.passed:
            return answer.layers
    raise MissingDependency(
        f"generated programs cannot be run contained on this system ({answer.outcome.detail})",
        hint="leave out tasks that run code, or install Python where every user may run it",
    )
