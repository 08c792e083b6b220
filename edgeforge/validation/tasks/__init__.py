"""Benchmark tasks of lm-eval on two models: any of its tasks, its definitions, its prompts and its figures.

prepare.py      names, data and drawn items, checked before a model is loaded
sources.py      local files in place of the hub's datasets
drawing.py      deterministic subsets and their names
borrowed.py     lm-eval with our datasets and our contained code_eval in it
harness.py      lm-eval's model class over a bundle (likelihood.py: its arithmetic)
run.py          the same items through both models (figures.py, flips.py: what comes of them)
__main__.py     lm-eval's own command line with the model `edgeforge`
"""

from edgeforge.validation.tasks.options import TaskOptions
from edgeforge.validation.tasks.prepare import PreparedTask, PreparedTasks, prepare_tasks
from edgeforge.validation.tasks.run import run_tasks

__all__ = ["PreparedTask", "PreparedTasks", "TaskOptions", "prepare_tasks", "run_tasks"]
