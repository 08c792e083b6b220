"""run: the prompt goes through the chat template where there is one; the answer streams to stdout."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeforge import runtime
from edgeforge.cli.answering import AnswerOptions, answer, speed_text
from edgeforge.cli.form import Form
from edgeforge.cli.run import prompt_ids, run
from edgeforge.errors import UnusableInput, UsageError
from edgeforge.runtime import ending, guidance

from .fakes import FakeModel

GREEDY = AnswerOptions(
    max_new_tokens=10,
    temperature=0.0,
    top_k=None,
    top_p=None,
    min_p=None,
    repetition_penalty=None,
    seed=None,
    stop=(),
)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()

    def load(path: Path, *, threads: int | None, device: str | None) -> FakeModel:
        return fake

    monkeypatch.setattr(runtime, "load", load)
    return fake


def test_every_piece_is_written_as_soon_as_it_comes() -> None:
    written: list[str] = []
    done = answer(FakeModel(["a", "", "b"]), [1], GREEDY, write=written.append)
    assert written == ["a", "b"]
    assert done.text == "ab"
    assert done.last.finish_reason == "stop"


def test_a_prompt_is_a_users_message_where_there_is_a_template() -> None:
    model = FakeModel()
    prompt_ids(model, "Hello", system="Be brief.", raw=False)
    assert model.prompts == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]]


@pytest.mark.parametrize(("template", "raw"), [(None, False), ("{{ messages }}", True)])
def test_a_prompt_is_continued_where_there_is_none_or_when_asked(template: str | None, raw: bool) -> None:
    model = FakeModel(chat_template=template)
    prompt_ids(model, "Once", system=None, raw=raw)
    assert model.prompts == ["Once"]
    with pytest.raises(UsageError, match="--system has no place here"):
        prompt_ids(model, "Once", system="Be brief.", raw=raw)


def test_the_answer_goes_to_stdout_and_timings_to_stderr(model: FakeModel) -> None:
    result = CliRunner().invoke(run, ["bundle", "Where?", "--timings", "--seed", "3", "--stop", "x", "--stop", "y"])
    assert result.exit_code == 0
    assert result.stdout == "Paris\n"
    assert result.stderr == "6 prompt tokens at 700/s, 2 new at 150/s, ended by stop\n"
    assert model.options == {"max_new_tokens": 512, "temperature": 0.0, "seed": 3, "stop": ("x", "y")}


def test_json_is_one_object_with_units(model: FakeModel) -> None:
    result = CliRunner().invoke(run, ["bundle", "Where?", "--json"])
    document = json.loads(result.stdout)
    assert document["text"] == "Paris"
    assert document["finish_reason"] == "stop"
    assert document["usage"]["completion_tokens"] == 2
    assert document["timings"]["decode_tokens_per_s"] == 150.0


@pytest.mark.parametrize(
    ("option", "value", "made"),
    [
        ("--json-schema", '{"const": 1}', ("json_schema", '{"const": 1}')),
        ("--grammar", 'start: "a"', ("grammar", 'start: "a"')),
        ("--regex", "yes|no", ("regex", "yes|no")),
    ],
)
def test_an_answer_is_held_to_the_form_asked_for(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, value: str, made: tuple[str, str]
) -> None:
    asked: list[tuple[str, str]] = []
    for name in ("json_schema", "grammar", "regex"):
        monkeypatch.setattr(guidance, name, lambda model, form, name=name: asked.append((name, form)) or name)
    monkeypatch.setattr(ending, "EndingGuide", lambda guide, limit: (guide, limit))
    (tmp_path / "form").write_text(value)
    given = value if option == "--regex" else str(tmp_path / "form")
    result = CliRunner().invoke(run, ["bundle", "Where?", option, given, "--max-new-tokens", "50"])
    assert result.exit_code == 0
    assert asked == [made]
    assert model.constraint == (("json_schema", 50) if option == "--json-schema" else made[0])


def test_an_answer_has_one_form(model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "form").write_text("{}")
    arguments = ["bundle", "Where?", "--regex", "a", "--json-schema", str(tmp_path / "form")]
    result = CliRunner().invoke(run, arguments)
    assert result.exit_code == 2
    assert "an answer has one form" in result.stderr


def test_a_form_that_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, sentence in {"bytes": "is not UTF-8 text", "none": "No such file", ".": "Is a directory"}.items():
        with pytest.raises(UnusableInput, match=sentence):
            Form(json_schema=None, regex=None, grammar=tmp_path / name).guide(FakeModel(), 10)  # type: ignore[arg-type]


def test_a_dash_reads_standard_input(model: FakeModel) -> None:
    CliRunner().invoke(run, ["bundle", "-"], input="from a pipe")
    assert model.prompts == [[{"role": "user", "content": "from a pipe"}]]


def test_speeds_are_told_in_tokens_per_second() -> None:
    *_, last = FakeModel().generate([1, 2, 3])
    assert speed_text(last) == "3 prompt tokens at 700/s, 2 new at 150/s, ended by stop"
