"""What to ask."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Benchmark tasks, by lm-eval's names.

    `limit` items of each task (`limits`: of a named one) are drawn with `seed`; of a group (mmlu) as many of each of
    its parts, as lm-eval's --limit does, so 5 of MMLU are 5 of each of its 57 subjects. `num_fewshot` None: the task's
    own number. `data`: a folder of local files in place of the hub's datasets (see `sources`).
    """

    names: tuple[str, ...]
    limit: int | None = None
    limits: tuple[tuple[str, int], ...] = ()
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    data: Path | None = None
    seed: int = 0
    allow_code_execution: bool = False

    def limit_of(self, name: str) -> int | None:
        """Of a task by the name that it was asked for; None: all its items."""
        return dict(self.limits).get(name, self.limit)
