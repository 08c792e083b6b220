"""Everything about tasks that can be known, and refused, before a model is loaded: names, data, and which items."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeforge.errors import UnusableInput, UsageError
from edgeforge.validation.findings import Subset
from edgeforge.validation.tasks import drawing
from edgeforge.validation.tasks.borrowed import LocalSplits, lm_eval_with
from edgeforge.validation.tasks.figures import check_figures
from edgeforge.validation.tasks.options import TaskOptions
from edgeforge.validation.tasks.sources import missing

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

FEWSHOT_SEED = 1234  # lm-eval's own
RUNS_CODE = frozenset({"openai/openai_humaneval", "evalplus/humanevalplus", "google-research-datasets/mbpp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A task of lm-eval, or one of those a group consists of, and the places of the items that are asked."""

    name: str
    title: str
    task: "ConfigurableTask"
    places: tuple[int, ...]
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTask:
    """A name that the user gave: one part, or as many as the group has."""

    name: str
    parts: tuple[Part, ...]
    subset: Subset
    num_fewshot: int
    runs_code: bool

    @property
    def requests(self) -> int:
        """What a model is asked in all."""
        return sum(part.requests for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTasks:
    """Ready to be asked."""

    options: TaskOptions
    tasks: tuple[PreparedTask, ...]


def prepare_tasks(options: TaskOptions) -> PreparedTasks:
    """Read and check all that tasks need, and draw their items; no model is loaded.

    Raises UsageError for no, unknown or doubled names, a limit below 1, and a task that runs what the model writes
    where that is not allowed; UnusableInput for data that is missing or wrong; MissingDependency without lm-eval.
    """
    _check_options(options)
    with lm_eval_with(options.data):
        manager = _manager()
        _check_names(options, manager)
        return PreparedTasks(options=options, tasks=tuple(_prepare(name, manager, options) for name in options.names))


@lru_cache(maxsize=1)
def _manager() -> "TaskManager":
    """lm-eval's index of all tasks; reading it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _check_options(options: TaskOptions) -> None:
    names = options.names
    if not names or not all(name.strip() for name in names):
        raise UsageError("the list of tasks is empty", hint="for example --tasks mmlu,lambada_openai,wikitext")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UsageError(f"the task {doubled[0]} is named twice", hint="name each task once")
    for name, _ in options.limits:
        if name not in names:
            raise UsageError(f"a limit is given for {name}, which is not asked", hint=f"add it to --tasks {names[0]}")
    for limit in (options.limit, *dict(options.limits).values()):
        if limit is not None and limit < 1:
            raise UsageError(f"a limit of {limit} items leaves nothing to ask", hint="give 1 or more")
    if options.num_fewshot is not None and options.num_fewshot < 0:
        raise UsageError(f"there are no {options.num_fewshot} examples", hint="give 0 or more")
    if options.data is not None and not options.data.is_dir():
        raise UnusableInput(f"there is no folder {options.data}", hint="--data takes a folder of benchmark files")


def _check_names(options: TaskOptions, manager: "TaskManager") -> None:
    known: list[str] = manager.all_tasks
    for name in options.names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"lm-eval knows no task {name}",
                hint=f"did you mean {near[0]}?" if near else "lm_eval ls tasks lists them all",
            )
        if not options.allow_code_execution and _runs_code(manager, name):
            raise UsageError(
                f"{name} runs programs that the model writes",
                hint="--allow-code-execution runs them, contained as well as this system can",
            )


def _runs_code(manager: "TaskManager", name: str) -> bool:
    """Told before the task is loaded: loading imports its metric."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path: Path | None = manager.task_index[name].yaml_path
    if path is None:
        return False
    config: dict[str, Any] = load_yaml(path, resolve_func=False)
    return bool(config.get("unsafe_code")) or config.get("dataset_path") in RUNS_CODE


def _prepare(name: str, manager: "TaskManager", options: TaskOptions) -> PreparedTask:
    loaded: dict[str, ConfigurableTask] = manager.load([name])["tasks"]
    runs_code = any(getattr(task, "UNSAFE_CODE", False) for task in loaded.values())
    if runs_code and not options.allow_code_execution:
        raise UsageError(f"{name} runs programs that the model writes", hint="--allow-code-execution runs them")
    for task in loaded.values():
        _set_fewshot(task, options.num_fewshot)
        check_figures(name, task)
    limit = options.limit_of(name)
    pairs = [(_part(each, task, options, limit), list(task.eval_docs)) for each, task in loaded.items()]
    asked = [docs[place] for part, docs in pairs for place in part.places]
    return PreparedTask(
        name=name,
        parts=tuple(part for part, _ in pairs),
        subset=Subset(
            items=len(asked),
            available=sum(len(docs) for _, docs in pairs),
            seed=options.seed,
            sha256=drawing.name(asked),
        ),
        num_fewshot=max(task.config.num_fewshot for task in loaded.values()),
        runs_code=runs_code,
    )


def _part(name: str, task: "ConfigurableTask", options: TaskOptions, limit: int | None) -> Part:
    docs = list(task.eval_docs)
    places = drawing.draw(docs, limit, seed=options.seed)
    return Part(
        name=name,
        title=task.config.task_alias or name,
        task=task,
        places=tuple(places),
        requests=task.config.repeats * sum(_requests(task, docs[place]) for place in places),
    )


def _requests(task: "ConfigurableTask", doc: dict[str, object]) -> int:
    if task.OUTPUT_TYPE != "multiple_choice":
        return 1
    choices: Sequence[str] = task.doc_to_choice(doc)
    return len(choices)


def _set_fewshot(task: "ConfigurableTask", wanted: int | None) -> None:
    """As lm-eval's own `simple_evaluate`: a task that says 0 keeps it. The examples' file must be there."""
    own: int | None = task.config.num_fewshot
    if own is None or (wanted is not None and own != 0):
        task.set_config(key="num_fewshot", value=wanted or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    if task.config.num_fewshot and isinstance(task.dataset, LocalSplits):
        split = task.fewshot_cfg.split or task.config.training_split or task.config.validation_split
        if split in task.dataset.absent:
            raise missing(task.dataset.folder, task.dataset.source, split)
