"""lm-eval's own transformers backend on a checkpoint's weights, beside ours: asked the same, item by item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from built import Build, transformers_twin

from edgeforge.validation.tasks import PreparedTask, PreparedTasks
from edgeforge.validation.tasks.borrowed import lm_eval_with
from edgeforge.validation.tasks.figures import join, read_scores

if TYPE_CHECKING:
    from lm_eval.api.model import LM

Samples = Mapping[str, Sequence[Mapping[str, Any]]]


def transformers_lm(build: Build) -> "LM":
    """HFLM in float32, with the bundle's tokenizer and context."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    model = build.load()
    record = model.manifest.model
    tokenizer = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(build.bundle / record.tokenizer), bos_token=record.bos_token, eos_token=record.eos_token
    )
    twin = transformers_twin(build.checkpoint)
    return HFLM(pretrained=twin, tokenizer=tokenizer, max_length=model.context_length, batch_size=1)


def bundle_lm(build: Build) -> "LM":
    from edgeforge.validation.tasks.harness import BundleLM

    return BundleLM.of(build.load())


def ask(lm: "LM", prepared: PreparedTasks, task: PreparedTask) -> Samples:
    """What lm-eval logs of each item."""
    from lm_eval.evaluator import evaluate

    with lm_eval_with(prepared.options.data):
        for part in task.parts:
            part.task.set_fewshot_seed(seed=1234)
        results = evaluate(
            lm=lm,
            task_dict={"tasks": {part.name: part.task for part in task.parts}, "groups": {}, "group_map": {}},
            samples={part.name: list(part.places) for part in task.parts},
            bootstrap_iters=0,
        )
    samples: Samples = results["samples"]
    return samples


@dataclass(frozen=True)
class Agreement:
    """`differing`: items scored or answered differently. `figures`: name -> (theirs, ours). `furthest`: of
    log-likelihoods.
    """

    items: int
    differing: int
    figures: Mapping[str, tuple[float, float]]
    furthest: float


def compare(task: PreparedTask, theirs: Samples, ours: Samples) -> Agreement:
    differing, items, furthest = 0, 0, 0.0
    for part in task.parts:
        for a, b in zip(theirs[part.name], ours[part.name], strict=True):
            items += 1
            assert a["arguments"] == b["arguments"]
            flat = list(zip([r[0] for r in a["resps"]], [r[0] for r in b["resps"]], strict=True))
            if isinstance(flat[0][0], str):
                differing += any(one != other for one, other in flat)
                continue
            pairs = [(_first(one), _first(other)) for one, other in flat]
            furthest = max(furthest, *(abs(one - other) for one, other in pairs))
            differing += any(a[metric] != b[metric] for metric in a["metrics"] if isinstance(a[metric], int))
            if len(flat) > 1:
                differing += _best([one for one, _ in pairs]) != _best([other for _, other in pairs])
    scores = [join([read_scores(part.task, samples[part.name]) for part in task.parts]) for samples in (theirs, ours)]
    figures = {one.name: (one.figure, other.figure) for one, other in zip(*scores, strict=True)}
    return Agreement(items=items, differing=differing, figures=figures, furthest=furthest)


def _first(response: Any) -> float:
    return float(response[0] if isinstance(response, tuple | list) else response)


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
