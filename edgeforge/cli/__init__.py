"""The command line: parse, make one call, print. `main` is the console script.

Nothing is imported here before `main` runs, and each command imports what it needs when it is invoked, so that
`edgeforge --help` answers at once.
"""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code (the table is in `edgeforge --help`)."""
    import sys

    from edgeforge.cli.console import run_guarded
    from edgeforge.cli.group import edgeforge

    sys.exit(run_guarded(edgeforge, sys.argv[1:] if argv is None else argv))
