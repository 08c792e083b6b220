"""Programs that a model wrote, run contained: HumanEval scores them by whether they pass their tests.

    supervisor.py   one warden per program, workers, progress
    layers.py       which layers this system allows, in plain phrases
    places.py       the files that an interpreter needs
    warden/         the process that contains one program (its own docstring has the design)
    code_eval.py    pass@k over this, in the shape of Hugging Face's metric

What is left to trust: the kernel, and that the program has no reason to cheat. The program shares an interpreter with
its own tests, so a determined one can pretend to pass them (compare equal to everything, say); the simple ways, ending
early and printing a marker, count as failures.
"""

from edgeforge.validation.execution.layers import isolation
from edgeforge.validation.execution.outcome import DEFAULT, STATUSES, Limits, Outcome, Status
from edgeforge.validation.execution.supervisor import run_program, run_programs

__all__ = ["DEFAULT", "STATUSES", "Limits", "Outcome", "Status", "isolation", "run_program", "run_programs"]
