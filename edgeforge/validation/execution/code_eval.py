"""pass@k over contained programs, in the shape of Hugging Face evaluate's `code_eval` metric.

pass@k is the unbiased estimate of arXiv 2107.03374 (equation 1): with n completions of a problem, c of them right,
1 - C(n - c, k) / C(n, k), averaged over problems.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from edgeforge.errors import OutOfResources
from edgeforge.validation.execution.outcome import DEFAULT, Limits, Outcome
from edgeforge.validation.execution.supervisor import run_programs


class Completion(TypedDict):
    """One completion's result. `result` is "passed" or how it failed; ids count from 0."""

    task_id: int
    completion_id: int
    passed: bool
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeEval:
    """Stands in for `evaluate.load("code_eval")`. `workers` programs run at once."""

    limits: Limits = DEFAULT
    workers: int = 2
    progress: Callable[[int, int], None] | None = None

    def compute(
        self, references: list[str], predictions: list[list[str]], k: Sequence[int] = (1, 10, 100)
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, Completion]]]]:
        """Runs each prediction followed by its problem's reference, which holds the tests.

        Gives {"pass@k": mean}, without those k for which a problem has too few completions, and each completion's
        result by problem. Raises OutOfResources where a program could not be run contained: that is no failure of it.
        """
        if len(references) != len(predictions):
            raise ValueError(f"{len(references)} references for {len(predictions)} lists of predictions")
        places = [(task, i) for task, candidates in enumerate(predictions) for i in range(len(candidates))]
        programs = [f"{predictions[task][i]}\n{references[task]}" for task, i in places]
        outcomes = run_programs(programs, self.limits, workers=self.workers, progress=self.progress)
        results: dict[int, list[tuple[int, Completion]]] = {task: [] for task in range(len(references))}
        for (task, i), outcome in zip(places, outcomes, strict=True):
            results[task].append((i, _completion(task, i, outcome)))
        counts = [(len(found), sum(result["passed"] for _, result in found)) for found in results.values()]
        return {f"pass@{some}": _mean_pass_at_k(counts, some) for some in k if _enough(counts, some)}, results


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that of k completions drawn from n, of which c are right, one is right; 1 <= k <= n."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _enough(counts: list[tuple[int, int]], k: int) -> bool:
    return bool(counts) and all(n >= k for n, _ in counts)


def _mean_pass_at_k(counts: list[tuple[int, int]], k: int) -> float:
    return math.fsum(pass_at_k(n, c, k) for n, c in counts) / len(counts)


def _completion(task: int, i: int, outcome: Outcome) -> Completion:
    if outcome.status == "refused":
        raise OutOfResources(
            f"a generated program could not be run contained ({outcome.detail})",
            hint="run fewer at once, or on a machine that is less busy",
        )
    result = f"{outcome.status}: {outcome.detail}" if outcome.detail else outcome.status
    return Completion(task_id=task, completion_id=i, passed=outcome.passed, result=result)
