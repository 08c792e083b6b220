"""What tasks need is checked before a model is loaded, and the drawn items are the same everywhere."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeforge.errors import EdgeForgeError, UnusableInput, UsageError
from edgeforge.validation.tasks import TaskOptions, prepare_tasks
from edgeforge.validation.tasks.drawing import draw, name
from edgeforge.validation.tasks.sources import documents

from .narrow import knowing_only

pytest.importorskip("lm_eval")

DRAWN = [2, 43, 70, 97, 99]
NAMED = "2ab398c53cefa1935d152bf89d6b9c0d9e535a460c39cf91c7aa5d880c8d867e"


def write(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def refusal(names: str, data: Path | None = None, **options: int) -> EdgeForgeError:
    with pytest.raises(EdgeForgeError) as caught:
        prepare_tasks(TaskOptions(names=tuple(names.split(",")) if names else (), data=data, **options))
    return caught.value


def test_names_are_checked(tmp_path: Path) -> None:
    assert "empty" in refusal("").message
    assert "twice" in refusal("wikitext,wikitext").message
    unknown = refusal("hellswag")
    assert isinstance(unknown, UsageError) and unknown.hint == "did you mean hellaswag?"
    assert isinstance(refusal("wikitext", limit=0), UsageError)
    assert isinstance(refusal("wikitext", tmp_path / "nowhere"), UnusableInput)


def test_code_is_not_run_unless_allowed(tmp_path: Path) -> None:
    error = refusal("humaneval", tmp_path)
    assert isinstance(error, UsageError) and "--allow-code-execution" in (error.hint or "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    error = refusal("lambada_openai", tmp_path)
    assert isinstance(error, UnusableInput) and "lambada_openai_test.jsonl" in error.message


def test_examples_are_needed_where_they_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k_test.jsonl", {"question": "1 + 1?", "answer": "#### 2"})
    assert "gsm8k_train.jsonl" in refusal("gsm8k", tmp_path).message
    prepared = prepare_tasks(TaskOptions(names=("gsm8k",), data=tmp_path, num_fewshot=0))
    assert prepared.tasks[0].num_fewshot == 0 and prepared.tasks[0].requests == 1


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"text": "a b"', "line 2 is no JSON"),
        ("[1]", "line 2 is no JSON object"),
        ('{"txt": "a b"}', "line 2 has no field text"),
        ('{"text": 3}', "line 2: the field text is 3, expected is a text"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, named: str) -> None:
    (tmp_path / "lambada_openai_test.jsonl").write_text('{"text": "a b"}\n' + line + "\n", encoding="utf-8")
    error = refusal("lambada_openai", tmp_path)
    assert isinstance(error, UnusableInput) and named in error.message and "\n" not in error.message


def test_a_damaged_archive_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "lambada_openai_test.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a b"}\n' * 999)[:-20])
    assert "cannot be read" in refusal("lambada_openai", tmp_path).message


def test_a_dataset_that_is_not_in_the_cache_is_one_sentence(tmp_path: Path) -> None:
    program = knowing_only(
        "arc",
        "from edgeforge.validation.tasks import TaskOptions, prepare_tasks\n"
        "from edgeforge.errors import EdgeForgeError\n"
        "try:\n    prepare_tasks(TaskOptions(names=('arc_easy',)))\n"
        "except EdgeForgeError as error:\n    print(error.exit_code, error.message)\n",
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("3 the dataset allenai/ai2_arc (ARC-Easy)") and done.stdout.count("\n") == 1


def test_mmlu_is_drawn_by_subject(test_data: Path) -> None:
    options = TaskOptions(names=("mmlu",), data=test_data / "benchmarks", limit=2, num_fewshot=2)
    task = prepare_tasks(options).tasks[0]
    assert len(task.parts) == 57 and task.subset.items == 114 and task.subset.available == 14_042
    assert all(len(part.places) == 2 for part in task.parts) and task.requests == 114 * 4
    for part in task.parts:
        asked = [part.task.eval_docs[place]["question"] for place in part.places]
        examples = [row["question"] for row in part.task.fewshot_docs()]
        assert len(examples) == 5 and not set(asked) & set(examples)


def test_limits_of_named_tasks_come_before_the_one_of_all(test_data: Path) -> None:
    names = ("lambada_openai", "gsm8k")
    data = test_data / "benchmarks"
    prepared = prepare_tasks(TaskOptions(names=names, limit=3, limits=(("gsm8k", 2),), num_fewshot=0, data=data))
    assert [task.subset.items for task in prepared.tasks] == [3, 2]
    with pytest.raises(UsageError, match="which is not asked"):
        prepare_tasks(TaskOptions(names=names, limits=(("mmlu", 2),), data=data))


def test_a_draw_is_the_same_everywhere_and_grows() -> None:
    items = [{"text": f"item {number}"} for number in range(100)]
    assert draw(items, 5, seed=0) == DRAWN
    assert name(items[:2]) == NAMED
    assert draw(items, 5, seed=1) != DRAWN
    assert set(DRAWN) < set(draw(items, 20, seed=0))
    reversed_draw = draw(items[::-1], 5, seed=0)
    assert sorted(99 - place for place in reversed_draw) == DRAWN
    assert draw(items, 500, seed=0) == draw(items, None, seed=0) == list(range(100))


def test_wikitext_is_cut_into_articles(test_data: Path) -> None:
    text = gzip.decompress((test_data / "benchmarks" / "wikitext2_test.raw.gz").read_bytes()).decode()
    pages = [str(row["page"]) for row in documents(text)]
    assert len(pages) == 62  # as EleutherAI/wikitext_document_level has
    assert "\n".join(pages).split() == text.split()
    assert pages[0].strip().startswith("= Robert Boulter =")
