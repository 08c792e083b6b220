"""lm-eval's machinery with three things in it exchanged for ours, for as long as a `with` lasts.

    datasets.load_dataset   local files where `--data` names them, and one sentence where a dataset is not there
    evaluate                its "code_eval", which fetches a script and runs programs unconfined, is our contained one
    progress and logging    lm-eval's own bars and notices stay silent

They are exchanged where lm-eval looks them up, as its task definitions name datasets of the hub and import the metric
when they are loaded; nothing in lm-eval takes them as arguments.
"""

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgeforge.errors import MissingDependency, UnusableInput
from edgeforge.validation.tasks.sources import DataFolder, Row, Source, find_source, read_split

if TYPE_CHECKING:
    from datasets import Dataset


class LocalSplits(dict[str, "Dataset"]):
    """The splits of one dataset. `absent`: those without a file, which lm-eval may touch and need not read."""

    def __init__(self, source: Source, folder: Path) -> None:
        super().__init__()
        self.source = source
        self.folder = folder
        self.absent: set[str] = set()


@contextmanager
def lm_eval_with(data: Path | None) -> Iterator[None]:
    """All three. Raises MissingDependency where lm-eval is not installed."""
    with ExitStack() as stack:
        stack.enter_context(datasets_from(data))
        import datasets
        import lm_eval.api.task

        log = logging.getLogger("lm_eval")
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        stack.enter_context(_exchanged(lm_eval.api.task, "tqdm", _without_bar))
        if datasets.is_progress_bar_enabled():
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        yield


@contextmanager
def datasets_from(data: Path | None) -> Iterator[None]:
    """Datasets and code_eval alone, for lm-eval's own command line."""
    try:
        import datasets
        import lm_eval.api.task  # noqa: F401  # named in the error below where it is missing
    except ImportError as error:
        raise MissingDependency(
            f"benchmark tasks need lm-eval: {error}", hint="pip install 'edgeforge[tasks]'"
        ) from None
    theirs = sys.modules.get("evaluate")
    with _exchanged(datasets, "load_dataset", _loader(datasets.load_dataset, data)):
        sys.modules["evaluate"] = ContainedEvaluate()
        try:
            yield
        finally:
            sys.modules.pop("evaluate")
            if theirs is not None:
                sys.modules["evaluate"] = theirs


class ContainedEvaluate(ModuleType):
    """Hugging Face's evaluate with our code_eval; the package itself is imported when something else is wanted of it,
    for that takes seconds.
    """

    def __init__(self) -> None:
        super().__init__("evaluate")

    def load(self, path: str, *arguments: object, **options: object) -> object:
        """A metric, by its name."""
        if path == "code_eval":
            from edgeforge.validation.execution.code_eval import CodeEval

            return CodeEval()
        found: object = _real_evaluate().load(path, *arguments, **options)
        return found

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        found: object = getattr(_real_evaluate(), name)
        return found


def _real_evaluate() -> ModuleType:
    ours = sys.modules.pop("evaluate")
    try:
        return importlib.import_module("evaluate")
    finally:
        sys.modules["evaluate"] = ours


@contextmanager
def _exchanged(module: ModuleType, name: str, ours: object) -> Iterator[None]:
    theirs = getattr(module, name)
    setattr(module, name, ours)
    try:
        yield
    finally:
        setattr(module, name, theirs)


def _without_bar(items: object, total: int | None = None) -> object:
    return items


def _loader(load: Callable[..., Any], data: Path | None) -> Callable[..., Any]:
    folder = None if data is None else DataFolder(data)

    def ours(path: str, name: str | None = None, **options: object) -> object:
        source = None if folder is None else find_source(path, name)
        if folder is not None and source is not None:
            return _local(folder, source, name)
        try:
            return load(path=path, name=name, **options)
        except Exception as error:  # datasets raises what its file systems, its scripts and the network raise
            called = path if name is None else f"{path} ({name})"
            raise UnusableInput(
                f"the dataset {called} is neither in the hub's cache nor to be fetched: {_first_line(error)}",
                hint="connect once, or give local files with --data",
            ) from None

    return ours


def _local(folder: DataFolder, source: Source, configuration: str | None) -> LocalSplits:
    splits = LocalSplits(source, folder.path)
    for split in sorted(source.files, key=lambda each: each != source.asked):
        rows = read_split(folder, source, split, configuration)
        if rows is None:
            splits.absent.add(split)
            splits[split] = splits[source.asked].select([])
        else:
            splits[split] = _dataset(rows)
    return splits


def _dataset(rows: list[Row]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_list(rows)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
