"""lm-eval's own transformers backend is the oracle: on the same float32 weights, the same answers."""

from pathlib import Path

import pytest
from built import Build
from lm_eval_twin import ask, bundle_lm, compare, transformers_lm

from edgeforge.validation.tasks import TaskOptions, prepare_tasks

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
# torch and transformers announce their own future on import
pytestmark = pytest.mark.filterwarnings("ignore")

STORIES = ("mmlu_anatomy", "lambada_openai", "wikitext", "gsm8k")


def test_stories_answers_as_in_transformers(stories_f32: Build, test_data: Path) -> None:
    options = TaskOptions(names=STORIES, limit=2, num_fewshot=0, data=test_data / "benchmarks")
    prepared = prepare_tasks(options)
    theirs, ours = transformers_lm(stories_f32), bundle_lm(stories_f32)
    for task in prepared.tasks:
        agreement = compare(task, ask(theirs, prepared, task), ask(ours, prepared, task))
        assert agreement.items >= 2 and agreement.differing == 0, task.name
        for one, other in agreement.figures.values():
            assert other == pytest.approx(one, rel=1e-3)
