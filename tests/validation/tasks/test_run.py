"""Both models answer the same items, and an interrupted run goes on where it stopped."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from built import Build

from edgeforge.hardware import load_target
from edgeforge.validation.findings import TaskFindings
from edgeforge.validation.tasks import PreparedTasks, TaskOptions, prepare_tasks, run_tasks

from .narrow import knowing_only

pytest.importorskip("lm_eval")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "cache"))


def run(prepared: PreparedTasks, reference: Build, candidate: Build, seen: list[int]) -> tuple[TaskFindings, ...]:
    return run_tasks(
        prepared,
        reference=reference.load(),
        candidate=candidate.load(),
        reference_key="reference",
        candidate_key="candidate",
        limits=load_target("cpu").gate,
        progress=lambda done, total: seen.append(done),
    )


@pytest.fixture(scope="module")
def prepared(test_data: Path) -> PreparedTasks:
    names = ("mmlu_stem", "lambada_openai", "wikitext", "gsm8k")
    return prepare_tasks(TaskOptions(names=names, limit=2, num_fewshot=0, data=test_data / "benchmarks"))


def test_findings_are_of_both_models(
    prepared: PreparedTasks, stories_f32: Build, stories_int4: Build, tmp_path: Path
) -> None:
    seen: list[int] = []
    findings = run(prepared, stories_f32, stories_int4, seen)
    mmlu, lambada, wikitext, gsm8k = findings
    assert seen == list(range(1, 2 * sum(task.requests for task in prepared.tasks) + 1))
    assert len(mmlu.groups) == 19 and sum(group.items for group in mmlu.groups) == mmlu.subset.items == 38
    mean = sum(group.candidate * group.items for group in mmlu.groups) / 38
    assert mmlu.metrics[0].candidate == pytest.approx(mean) == pytest.approx(sum(mmlu.candidate_scores) / 38)
    assert mmlu.lost - mmlu.gained == pytest.approx(-38 * mmlu.metrics[0].change)
    assert len(mmlu.flips) == min(20, mmlu.lost + mmlu.gained)
    for flip in mmlu.flips:
        answer, other = flip.reference_answer, flip.candidate_answer
        assert (answer if flip.lost else other) == flip.expected != (other if flip.lost else answer)
    assert [metric.name for metric in lambada.metrics] == ["acc", "perplexity"]
    assert wikitext.check.figure == "wikitext word_perplexity" and wikitext.p_value is None
    assert wikitext.metrics[0].change == pytest.approx(wikitext.metrics[0].candidate / wikitext.metrics[0].reference)
    words = np.array(wikitext.item_lengths)
    per_word = float(words @ np.array(wikitext.candidate_scores) / words.sum())
    assert math.exp(per_word) == pytest.approx(wikitext.metrics[0].candidate)
    assert mmlu.item_lengths == ()
    assert [metric.name for metric in gsm8k.metrics] == ["exact_match,strict-match", "exact_match,flexible-extract"]
    again = run(prepared, stories_f32, stories_int4, [])
    assert [each.candidate_scores for each in again] == [each.candidate_scores for each in findings]
    assert {each.reference_seconds for each in again} == {0.0}


KILLED = """
import os, sys
from pathlib import Path
from edgeforge.runtime import load
from edgeforge.hardware import load_target
from edgeforge.validation.tasks import TaskOptions, prepare_tasks, run_tasks
bundle, data, stop = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
prepared = prepare_tasks(TaskOptions(names=("lambada_openai",), limit=10, data=data))
def progress(done, total):
    if done == stop:
        os.kill(os.getpid(), 9)
model = load(bundle, device="cpu")
computed = []
decoder, score = type(model.decoder).append, type(model).score
type(model).score = lambda *a, **k: (computed.append(1), score(*a, **k))[1]
run_tasks(prepared, reference=model, candidate=model, reference_key="a", candidate_key="b",
    limits=load_target("cpu").gate, progress=progress)
from edgeforge.validation.responses import Responses
print(len(computed), len(Responses("a")), len(Responses("b")))
"""


def test_a_killed_run_goes_on_at_its_item(stories_f32: Build, test_data: Path) -> None:
    def start(stop: int) -> subprocess.CompletedProcess[str]:
        program = knowing_only("lambada", KILLED)
        command = [sys.executable, "-c", program, str(stories_f32.bundle), str(test_data / "benchmarks"), str(stop)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)

    assert start(14).returncode == -9  # the reference answered 10, the candidate 4
    rest = start(0)
    assert rest.returncode == 0, rest.stderr
    computed, reference, candidate = map(int, rest.stdout.split())
    assert (reference, candidate) == (10, 10)
    assert computed <= 6


@pytest.mark.slow
def test_lm_evals_own_command_line_knows_bundles(stories_f32: Build, test_data: Path) -> None:
    """lm-eval's options, tasks and table; the model is a bundle."""
    command = [sys.executable, "-m", "edgeforge.validation.tasks", "--model", "edgeforge", "--tasks", "lambada_openai"]
    command += ["--model_args", f"bundle={stories_f32.bundle}", "--limit", "3", "--data", str(test_data / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|lambada_openai|" in done.stdout
