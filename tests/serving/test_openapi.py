"""/openapi.json: a document that others read, and a server that keeps to it whatever it is sent."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from served import client_of
from starlette.testclient import TestClient
from tiny_bundle import Shape, make_bundle

from edgeforge import runtime

ANSWERED = (200, 400, 404, 413, 415, 429)
ASKED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Of a model with so little room that no answer is long."""
    bundle = make_bundle(tmp_path_factory.mktemp("bundles") / "small", Shape(context=96))
    with client_of(runtime.load(bundle, threads=1)) as client:
        yield client


def test_other_peoples_readers_take_the_document(small: TestClient) -> None:
    import schemathesis

    document = small.get("/openapi.json").json()
    read = schemathesis.openapi.from_dict(document)
    assert {operation.ok().label for operation in read.get_all_operations()} == {
        "POST /v1/chat/completions",
        "POST /v1/completions",
        "GET /v1/models",
        "GET /v1/models/{model}",
        "GET /health",
        "GET /ready",
    }
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", ASKED)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_field_is_answered_or_refused_as_documented(
    small: TestClient, path: str, data: st.DataObject
) -> None:
    schemas = small.get("/openapi.json").json()["components"]["schemas"]
    fields = sorted(schemas["ChatRequest" if "chat" in path else "CompletionRequest"]["properties"])
    changed = data.draw(st.dictionaries(st.sampled_from([*fields, "other"]), JSON, min_size=1, max_size=3))
    # Not by `json=`, which refuses infinities itself; other clients send them.
    body = json.dumps({**ASKED[path], **changed, "stream": False})
    answer = small.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in ANSWERED, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


@pytest.mark.parametrize("path", ASKED)
@given(body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_body_is_refused_in_the_same_form(small: TestClient, path: str, body: bytes) -> None:
    answer = small.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
