"""Datasets of lm-eval's tasks as local files: which file stands for which split of which dataset of the hub.

A file is NAME.jsonl or NAME.jsonl.gz with one row a line, under the hub's own field names; WikiText is the raw text,
NAME.raw or NAME.raw.gz, cut into documents as EleutherAI/wikitext_document_level is.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeforge.errors import UnusableInput

Row = dict[str, object]
Check = Callable[[object], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of a row, and what its value must be."""

    is_valid: Check
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One dataset. `asked` is the split whose rows are asked; the other files hold examples for few-shot prompts.

    `subject_field`: the file holds all configurations of the dataset, and this field tells them apart.
    """

    dataset: str
    configuration: str | None
    asked: str
    files: Mapping[str, str]  # split -> file name without its ending
    fields: Mapping[str, Field]
    subject_field: str | None = None
    is_text: bool = False


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(each, str) for each in value)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 4


def _is_labelled(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    texts, labels = value.get("text"), value.get("label")
    return _is_texts(texts) and _is_texts(labels) and len(texts or ()) == len(labels or ())


def _is_four(value: object) -> bool:
    return _is_texts(value) and isinstance(value, list) and len(value) == 4


TEXT = Field(is_valid=_is_text, expected="a text")
FOUR = Field(is_valid=_is_four, expected="a list of 4 texts")
INDEX = Field(is_valid=_is_index, expected="a whole number from 0 to 3")
LABELLED = Field(is_valid=_is_labelled, expected='{"text": [...], "label": [...]} of equal length')


def _arc(configuration: str, name: str) -> Source:
    return Source(
        dataset="allenai/ai2_arc",
        configuration=configuration,
        asked="test",
        files={"test": f"{name}_test", "validation": f"{name}_validation", "train": f"{name}_train"},
        fields={"question": TEXT, "choices": LABELLED, "answerKey": TEXT},
    )


SOURCES = (
    Source(
        dataset="cais/mmlu",
        configuration=None,
        asked="test",
        files={"test": "mmlu_test", "dev": "mmlu_dev"},
        fields={"subject": TEXT, "question": TEXT, "choices": FOUR, "answer": INDEX},
        subject_field="subject",
    ),
    Source(
        dataset="openai/gsm8k",
        configuration="main",
        asked="test",
        files={"test": "gsm8k_test", "train": "gsm8k_train"},
        fields={"question": TEXT, "answer": TEXT},
    ),
    Source(
        dataset="openai/openai_humaneval",
        configuration=None,
        asked="test",
        files={"test": "humaneval"},
        fields=dict.fromkeys(("task_id", "prompt", "entry_point", "canonical_solution", "test"), TEXT),
    ),
    Source(
        dataset="EleutherAI/lambada_openai",
        configuration="default",
        asked="test",
        files={"test": "lambada_openai_test"},
        fields={"text": TEXT},
    ),
    Source(
        dataset="EleutherAI/wikitext_document_level",
        configuration="wikitext-2-raw-v1",
        asked="test",
        files={"test": "wikitext2_test", "validation": "wikitext2_validation", "train": "wikitext2_train"},
        fields={"page": TEXT},
        is_text=True,
    ),
    Source(
        dataset="Rowan/hellaswag",
        configuration=None,
        asked="validation",
        files={"validation": "hellaswag_validation", "train": "hellaswag_train"},
        fields={"activity_label": TEXT, "ctx_a": TEXT, "ctx_b": TEXT, "endings": FOUR, "label": TEXT},
    ),
    _arc("ARC-Challenge", "arc_challenge"),
    _arc("ARC-Easy", "arc_easy"),
)


def find_source(dataset: str, configuration: str | None) -> Source | None:
    """What stands for a dataset of the hub."""
    for source in SOURCES:
        if source.dataset == dataset and source.configuration in (None, configuration):
            return source
    return None


class DataFolder:
    """A folder of local files, each of which is read once: the 57 subjects of MMLU lie in one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[Path, list[Row]] = {}

    def rows(self, file: Path, source: Source) -> list[Row]:
        """All rows of a file, whatever their subject. Raises UnusableInput."""
        if file not in self._rows:
            self._rows[file] = list(documents(_read(file)) if source.is_text else _rows(file, source.fields))
        return self._rows[file]


def read_split(folder: DataFolder, source: Source, split: str, configuration: str | None) -> list[Row] | None:
    """The rows of a split, in the file's order; None where there is no such file and the split is not asked.

    Raises UnusableInput for a missing or empty file, a line that is no JSON, a field that is missing or wrong.
    """
    ending = "raw" if source.is_text else "jsonl"
    stem = source.files.get(split)
    places = [] if stem is None else [folder.path / f"{stem}.{ending}", folder.path / f"{stem}.{ending}.gz"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        if split != source.asked:
            return None
        raise missing(folder.path, source, split)
    rows = folder.rows(path, source)
    if source.subject_field is not None:
        rows = [row for row in rows if row[source.subject_field] == configuration]
    if not rows:
        what = "rows" if source.subject_field is None else f"rows of {source.subject_field} {configuration}"
        raise UnusableInput(f"{path} has no {what}", hint="the file is another one, or cut short")
    return rows


def missing(folder: Path, source: Source, split: str) -> UnusableInput:
    """The error for a file that is needed and not there."""
    name = f"{source.files.get(split, split)}.{'raw' if source.is_text else 'jsonl'}"
    return UnusableInput(
        f"{folder} has neither {name} nor {name}.gz, which stand for the {split} rows of {source.dataset}",
        hint="put it there, or leave out --data to take the dataset from the hub's cache",
    )


def documents(text: str) -> Iterator[Row]:
    """WikiText's lines as articles: one begins at each title, `= Title =` (a section has more signs)."""
    lines: list[str] = []
    for line in text.split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            page = "\n".join(lines)
            if page.strip():
                yield {"page": page}
            lines = []
        lines.append(line)
    yield {"page": "\n".join(lines)}


def _rows(path: Path, fields: Mapping[str, Field]) -> Iterator[Row]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnusableInput(f"{path}, line {number} is no JSON: {error}", hint="one JSON object a line") from None
        if not isinstance(row, dict):
            raise UnusableInput(f"{path}, line {number} is no JSON object", hint="one JSON object a line")
        for name, field in fields.items():
            if name not in row:
                raise UnusableInput(
                    f"{path}, line {number} has no field {name}", hint=f"expected are {', '.join(fields)}"
                )
            if not field.is_valid(row[name]):
                raise UnusableInput(
                    f"{path}, line {number}: the field {name} is {json.dumps(row[name])[:60]}, expected is "
                    f"{field.expected}",
                    hint="the fields are those of the dataset on the hub",
                )
        yield {name: row[name] for name in fields}


def _read(path: Path) -> str:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8", newline="") as file
        ):
            return file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UnusableInput(f"{path} cannot be read: {error}", hint="the file is damaged") from None
