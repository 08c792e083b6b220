"""pass@k is the Codex paper's, and HumanEval's own solutions all pass."""

import gzip
import itertools
import json
import time
from pathlib import Path

import pytest

from edgeforge.errors import OutOfResources
from edgeforge.validation.execution import Outcome, code_eval
from edgeforge.validation.execution.code_eval import CodeEval, pass_at_k

from .contained import here


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 2), (6, 6), (7, 1)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int, c: int) -> None:
    for k in range(1, n + 1):
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_the_shape_is_that_of_hugging_faces_metric() -> None:
    here(frozenset())
    scores, results = CodeEval(workers=2).compute(
        ["assert add(2, 3) == 5", "assert one() == 1"],
        [
            ["def add(a, b): return a * b", "def add(a, b): return a + b"],
            ["def one(): return 1", "def one(): return 1"],
        ],
        k=[1, 2, 10],
    )
    assert scores == {"pass@1": 0.75, "pass@2": 1.0}
    assert results[0][1] == (1, {"task_id": 0, "completion_id": 1, "passed": True, "result": "passed"})
    assert results[0][0][1]["result"].startswith("failed: AssertionError")
    assert list(results) == [0, 1]


def test_a_program_that_was_not_run_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Outcome(status="refused", detail="pid: no space")
    monkeypatch.setattr(code_eval, "run_programs", lambda sources, *_, **__: tuple(refused for _ in sources))
    with pytest.raises(OutOfResources, match="pid: no space"):
        CodeEval().compute(["pass"], [["pass"]])


def test_every_canonical_solution_of_humaneval_passes(test_data: Path) -> None:
    here(frozenset())
    file = test_data / "benchmarks" / "humaneval.jsonl.gz"
    if not file.is_file():
        pytest.skip("no HumanEval in the test data")
    with gzip.open(file, "rt") as lines:
        problems = [json.loads(line) for line in lines]
    tests = [f"{problem['test']}\ncheck({problem['entry_point']})" for problem in problems]
    solutions = [[problem["prompt"] + problem["canonical_solution"]] for problem in problems]
    started = time.monotonic()
    scores, results = CodeEval(workers=2).compute(tests, solutions, k=[1])
    print(f"{len(problems)} programs in {time.monotonic() - started:.1f} s")
    failed = {
        problems[task]["task_id"]: found[0][1]["result"] for task, found in results.items() if not found[0][1]["passed"]
    }
    assert failed == {}
    assert len(problems) == 164
    assert scores == {"pass@1": 1.0}
