"""/v1/completions: texts go on, one or several, from words or ids."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from edgeforge.runtime.model import Model

PATH = "/v1/completions"


def asked(client: TestClient, **fields: object) -> Any:
    answer = client.post(PATH, json={"prompt": "Once", "max_tokens": 6, "temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(model: Model, prompt: str) -> str:
    return "".join(chunk.text for chunk in model.generate(prompt, max_new_tokens=6, temperature=0))


def test_each_prompt_goes_on_as_the_runtime_says(client: TestClient, model: Model) -> None:
    answer = asked(client, prompt=["Once", "Twice"])
    assert answer["object"] == "text_completion"
    assert [choice["text"] for choice in answer["choices"]] == [said(model, "Once"), said(model, "Twice")]
    assert answer["usage"]["prompt_tokens"] == 9
    assert answer["usage"]["completion_tokens"] == 12


def test_ids_are_as_good_as_the_text_they_stand_for(client: TestClient, model: Model) -> None:
    text = asked(client)["choices"]
    assert asked(client, prompt=model.encode("Once"))["choices"] == text
    assert asked(client, prompt=[model.encode("Once")])["choices"] == text


def test_several_answers_to_several_prompts_are_numbered_prompt_by_prompt(client: TestClient, model: Model) -> None:
    answer = asked(client, prompt=["Once", "Twice"], n=2)
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [said(model, "Once")] * 2 + [said(model, "Twice")] * 2
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 9


def test_echo_puts_the_prompt_before_the_answer(client: TestClient, model: Model) -> None:
    assert asked(client, echo=True)["choices"][0]["text"] == "Once" + said(model, "Once")
    assert asked(client, echo=True, prompt=model.encode("Once"))["choices"][0]["text"].startswith("Once")


def test_without_max_tokens_an_answer_has_openais_sixteen(client: TestClient) -> None:
    answer = client.post(PATH, json={"prompt": "Once", "temperature": 0}).json()
    assert answer["usage"]["completion_tokens"] == 16


def test_log_probabilities_name_tokens_and_where_they_stand(client: TestClient) -> None:
    choice = asked(client, logprobs=2)["choices"][0]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert told["text_offset"][0] == 0
    assert len(told["token_logprobs"]) == len(told["top_logprobs"]) == 6
    assert all(value <= 0 for value in told["token_logprobs"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [100_000]}, None),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_cannot_be_continued_is_refused(client: TestClient, fields: dict[str, object], param: str | None) -> None:
    answer = client.post(PATH, json={"prompt": "Once", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.text
