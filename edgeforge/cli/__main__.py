"""`python -m edgeforge.cli` is the console script."""

from edgeforge.cli import main

main()
