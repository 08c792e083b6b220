"""/v1/chat/completions: what the model says is what is told, whole or streamed, with every option."""

import json
import math
from typing import Any

import pytest
from served import client_of
from starlette.testclient import TestClient

from edgeforge.runtime.model import Model

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["age", "tags"],
    "additionalProperties": False,
}


def asked(client: TestClient, **fields: object) -> Any:
    answer = client.post(PATH, json={"messages": HELLO, "max_tokens": 8, "temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(client: TestClient, **fields: object) -> list[Any]:
    """The objects of a stream, whose end is checked."""
    with client.stream("POST", PATH, json={"messages": HELLO, "max_tokens": 8, "stream": True, **fields}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def refused(client: TestClient, **fields: object) -> tuple[int, Any]:
    answer = client.post(PATH, json={"messages": HELLO, "max_tokens": 8, **fields})
    return answer.status_code, answer.json()["error"]


def said(model: Model, **options: Any) -> str:
    return "".join(chunk.text for chunk in model.chat(HELLO, max_new_tokens=8, temperature=0, **options))


def test_an_answer_is_what_the_runtime_says_and_counts_its_tokens(client: TestClient, model: Model) -> None:
    answer = asked(client)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": said(model), "refusal": None}
    assert choice["finish_reason"] == "length"
    prompt = len(model.chat_ids(HELLO))
    assert answer["usage"]["prompt_tokens"] == prompt
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["total_tokens"] == prompt + 8


def test_a_second_turn_says_how_much_of_the_prompt_was_known(client: TestClient, model: Model) -> None:
    asked(client)
    longer = asked(client, messages=[*HELLO, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}])
    known = longer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < known < longer["usage"]["prompt_tokens"]


def test_a_stream_is_the_same_answer_in_pieces(client: TestClient) -> None:
    whole = asked(client)
    objects = streamed(client, temperature=0, stream_options={"include_usage": True})
    assert {each["object"] for each in objects} == {"chat.completion.chunk"}
    assert len({each["id"] for each in objects}) == 1
    assert objects[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    pieces = [each["choices"][0] for each in objects[:-1]]
    assert len(pieces) > 3
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == whole["choices"][0]["message"]["content"]
    assert [piece["finish_reason"] for piece in pieces][-1] == "length"
    assert objects[-1]["choices"] == []
    assert objects[-1]["usage"]["completion_tokens"] == 8


def test_several_answers_differ_and_a_seed_brings_them_back(client: TestClient) -> None:
    first = asked(client, n=3, seed=5, temperature=1.5)
    again = asked(client, n=3, seed=5, temperature=1.5)
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert first["usage"]["completion_tokens"] == 24
    objects = streamed(client, n=3, seed=5, temperature=1.5)
    for index, text in enumerate(texts):
        pieces = [each["choices"][0] for each in objects if each["choices"][0]["index"] == index]
        assert "".join(piece["delta"].get("content", "") for piece in pieces) == text


def test_a_stop_string_ends_the_answer_and_is_not_told(client: TestClient, model: Model) -> None:
    text = said(model)
    stop = text[-2:]
    answer = asked(client, stop=[stop, "never"])["choices"][0]
    assert answer["message"]["content"] == text.partition(stop)[0]
    assert answer["finish_reason"] == "stop"


def test_log_probabilities_are_of_each_token_with_as_many_alternatives_as_asked(client: TestClient) -> None:
    choice = asked(client, logprobs=True, top_logprobs=3)["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 8
    for each in content:
        assert len(each["top_logprobs"]) == 3
        assert each["logprob"] == max(other["logprob"] for other in each["top_logprobs"])  # greedy
        assert 0 < math.exp(each["logprob"]) <= 1
    assert (
        bytes(byte for each in content for byte in each["bytes"])
        .decode(errors="replace")
        .startswith(choice["message"]["content"][:4])
    )
    pieces = [each["choices"][0] for each in streamed(client, temperature=0, logprobs=True, top_logprobs=3)]
    told = [one for piece in pieces if piece["logprobs"] for one in piece["logprobs"]["content"]]
    assert told == content
    assert asked(client)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("seed", range(3))
def test_json_schema_is_satisfied_even_by_noise_and_short_of_tokens(client: TestClient, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    answer = asked(client, response_format=form, temperature=1.5, seed=seed, max_tokens=60)["choices"][0]
    said = json.loads(answer["message"]["content"])
    assert isinstance(said["age"], int)
    assert all(isinstance(tag, str) for tag in said["tags"])


def test_json_object_is_an_object(client: TestClient) -> None:
    answer = asked(client, response_format={"type": "json_object"}, temperature=1.5, seed=1, max_tokens=40)
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)


def test_a_required_tool_is_called_whole_and_streamed(client: TestClient) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 80, "temperature": 0}
    choice = asked(client, **fields)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    pieces = [each["choices"][0] for each in streamed(client, **fields)]
    (told,) = [one for piece in pieces for one in piece["delta"].get("tool_calls", [])]
    assert told["function"] == call["function"]
    assert told["index"] == 0
    assert pieces[-1]["finish_reason"] == "tool_calls"


def test_results_of_tools_are_part_of_the_conversation(client: TestClient) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    conversation = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    answer = asked(client, messages=conversation, tools=[WEATHER])
    assert answer["usage"]["prompt_tokens"] > asked(client, tools=[WEATHER])["usage"]["prompt_tokens"]


def test_content_may_be_parts_and_developers_are_the_system(client: TestClient) -> None:
    plain = [{"role": "system", "content": "a\nb"}, *HELLO]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        *HELLO,
    ]
    assert asked(client, messages=plain)["choices"] == asked(client, messages=parts)["choices"]


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"messages": []}, "messages", 400),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0", 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", 400),
        ({"messages": [{"role": "user", "content": "long " * 2000}]}, "messages", 400),
        ({"temprature": 1}, "temprature", 400),
        ({"temperature": 3}, "temperature", 400),
        ({"temperature": "1"}, "temperature", 400),
        ({"n": 0}, "n", 400),
        ({"n": 100}, None, 400),
        ({"frequency_penalty": 0.5}, "frequency_penalty", 400),
        ({"logit_bias": {"1": 100}}, "logit_bias", 400),
        ({"functions": [{"name": "f"}]}, "functions", 400),
        ({"top_logprobs": 2}, "top_logprobs", 400),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", 400),
        ({"tool_choice": "required"}, "tool_choice", 400),
        ({"tools": [WEATHER, WEATHER]}, "tools", 400),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format", 400),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
            "response_format.json_schema.schema",
            400,
        ),
        ({"model": "gpt-9"}, "model", 404),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_field_at_fault(
    client: TestClient, fields: dict[str, object], param: str | None, status: int
) -> None:
    got, error = refused(client, **fields)
    assert (got, error["param"]) == (status, param), error
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    also, streaming = refused(client, **fields, stream=True)
    assert (also, streaming["message"]) == (got, error["message"])


def test_what_changes_nothing_is_accepted(client: TestClient) -> None:
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "u", "store": False}
    assert asked(client, **neutral)["choices"] == asked(client)["choices"]


def test_a_bundle_without_chat_template_says_what_to_use(textual: Model) -> None:
    status, error = refused(client_of(textual))
    assert status == 400
    assert "no chat template" in error["message"]
    assert "plain prompt" in error["message"]
