"""The same items through both models, by lm-eval's own machinery, and what to find of it."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from edgeforge.errors import UsageError
from edgeforge.runtime.model import Model
from edgeforge.validation import paired
from edgeforge.validation.execution import isolation
from edgeforge.validation.findings import Flip, Group, TaskFindings
from edgeforge.validation.gate import Limits
from edgeforge.validation.responses import Responses
from edgeforge.validation.tasks import figures, flips
from edgeforge.validation.tasks.borrowed import lm_eval_with
from edgeforge.validation.tasks.figures import Sample, Scores
from edgeforge.validation.tasks.prepare import FEWSHOT_SEED, PreparedTask, PreparedTasks

Progress = Callable[[int, int], None]  # requests answered, requests in all


def run_tasks(
    prepared: PreparedTasks,
    *,
    reference: Model,
    candidate: Model,
    reference_key: str,
    candidate_key: str,
    limits: Limits,
    progress: Progress,
) -> tuple[TaskFindings, ...]:
    """Ask both models, and hold the candidate's answers against the reference's.

    Keys are hashes of what a model's answers depend on: answers are kept under them, and those that are kept already
    are not computed again. `progress` counts requests, of both models. Raises UnusableInput for a task whose answers
    need more room than a bundle's context, UsageError for a chat template that is not there.
    """
    if prepared.options.apply_chat_template and reference.chat_template is None:
        raise UsageError("this model has no chat template", hint="leave out --apply-chat-template")
    count = _Count(total=2 * sum(task.requests for task in prepared.tasks), progress=progress)
    with ExitStack() as stack:
        stack.enter_context(lm_eval_with(prepared.options.data))
        kept = [stack.enter_context(Responses(key)) for key in (reference_key, candidate_key)]
        found = []
        for task in prepared.tasks:
            theirs = _ask(task, prepared, reference, kept[0], count)
            ours = _ask(task, prepared, candidate, kept[1], count)
            found.append(_findings(task, prepared, theirs, ours, limits))
    return tuple(found)


@dataclass(slots=True, kw_only=True)
class _Count:
    """Progress over all tasks and both models."""

    total: int
    progress: Progress
    done: int = 0

    def add(self) -> None:
        self.done = min(self.done + 1, self.total)
        self.progress(self.done, self.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One model's samples, by part, and the time it took (0 where every answer was known)."""

    samples: dict[str, list[Sample]]
    seconds: float


def _ask(task: PreparedTask, prepared: PreparedTasks, model: Model, responses: Responses, count: _Count) -> _Run:
    from lm_eval.evaluator import evaluate

    from edgeforge.validation.tasks.harness import BundleLM

    lm = BundleLM.of(model, responses=responses, answered=count.add)
    started = time.perf_counter()
    for part in task.parts:
        part.task.set_fewshot_seed(seed=FEWSHOT_SEED)
    results = evaluate(
        lm=lm,
        task_dict={"tasks": {part.name: part.task for part in task.parts}, "groups": {}, "group_map": {}},
        samples={part.name: list(part.places) for part in task.parts},
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=prepared.options.apply_chat_template,
        fewshot_as_multiturn=prepared.options.apply_chat_template,
        confirm_run_unsafe_code=prepared.options.allow_code_execution,
    )
    seconds = time.perf_counter() - started if lm.computed else 0.0
    return _Run(samples={part.name: list(results["samples"][part.name]) for part in task.parts}, seconds=seconds)


def _findings(
    task: PreparedTask, prepared: PreparedTasks, reference: _Run, candidate: _Run, limits: Limits
) -> TaskFindings:
    theirs, ours = (
        [figures.read_scores(p.task, run.samples[p.name]) for p in task.parts] for run in (reference, candidate)
    )
    pairs = list(zip(figures.join(theirs), figures.join(ours), strict=True))
    first, second = pairs[0]
    lost = int((first.values > second.values).sum()) if _right_or_wrong(first, second) else 0
    gained = int((first.values < second.values).sum()) if _right_or_wrong(first, second) else 0
    return TaskFindings(
        task=task.name,
        subset=task.subset,
        num_fewshot=task.num_fewshot,
        chat_template=prepared.options.apply_chat_template,
        metrics=tuple(
            figures.compare(a, b, confidence=limits.confidence, seed=prepared.options.seed) for a, b in pairs
        ),
        check=figures.judge(task.name, first, second, limits),
        lost=lost,
        gained=gained,
        p_value=paired.mcnemar(lost, gained) if _right_or_wrong(first, second) else None,
        groups=_groups(task, theirs, ours),
        flips=_flips(task, reference, candidate, first.name) if lost + gained else (),
        reference_scores=first.by_item,
        candidate_scores=second.by_item,
        item_lengths=first.lengths,
        isolation=isolation() if task.runs_code else None,
        reference_seconds=round(reference.seconds, 3),
        candidate_seconds=round(candidate.seconds, 3),
    )


def _right_or_wrong(reference: Scores, candidate: Scores) -> bool:
    both = (*reference.values, *candidate.values)
    return reference.kind == "mean" and all(value in (0.0, 1.0) for value in both)


def _groups(
    task: PreparedTask, reference: Sequence[Sequence[Scores]], candidate: Sequence[Sequence[Scores]]
) -> tuple[Group, ...]:
    if len(task.parts) == 1:
        return ()
    return tuple(
        Group(name=part.title, items=len(part.places), reference=theirs[0].figure, candidate=ours[0].figure)
        for part, theirs, ours in zip(task.parts, reference, candidate, strict=True)
    )


def _flips(task: PreparedTask, reference: _Run, candidate: _Run, figure: str) -> tuple[Flip, ...]:
    metric, _, chosen = figure.partition(",")
    found: list[Flip] = []
    for part in task.parts:
        theirs, ours = (
            [sample for sample in run.samples[part.name] if chosen in ("", sample["filter"])]
            for run in (reference, candidate)
        )
        found += flips.show(part.name, theirs, ours, metric)
    return flips.pick(found)
