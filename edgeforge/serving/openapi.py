"""/openapi.json: what the server takes and gives, made of the records that check it."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from edgeforge.serving import requests, responses

JSON = "application/json"
ERRORS: Mapping[int, str] = {
    400: "The request cannot be answered; the error says why.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    421: "The server does not go by the name in the header Host.",
    429: "The queue is full; Retry-After says when to come again.",
    503: "The server is stopping, or its memory is full.",
    504: "The answer was not complete in time.",
}
ANSWERED = tuple(ERRORS)
READ = (401, 421)


def document(*, version: str, keys: bool) -> dict[str, object]:
    """The OpenAPI 3.1 document. `keys`: requests need an API key."""
    _, schemas = models_json_schema(
        [
            (requests.ChatRequest, "validation"),
            (requests.CompletionRequest, "validation"),
            *((kind, "serialization") for kind in _answers()),
        ],
        ref_template="#/components/schemas/{model}",
    )
    components: dict[str, object] = {"schemas": schemas["$defs"]}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "EdgeForge", "version": version},
        "paths": {
            "/v1/chat/completions": {
                "post": _ask(
                    "chat", requests.ChatRequest, responses.ChatCompletion, responses.ChatCompletionChunk, keys
                )
            },
            "/v1/completions": {
                "post": _ask("complete", requests.CompletionRequest, responses.Completion, responses.Completion, keys)
            },
            "/v1/models": {"get": _tell("models", responses.ModelList, READ, keys)},
            "/v1/models/{model}": {
                "get": {
                    **_tell("model", responses.ModelCard, (*READ, 404), keys),
                    "parameters": [
                        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                    ],
                }
            },
            "/health": {"get": _tell("health", responses.Health, (421,), keys=False)},
            "/ready": {"get": _tell("ready", responses.Health, (421, 503), keys=False)},
        },
        "components": components,
    }


def _answers() -> Sequence[type[BaseModel]]:
    return (
        responses.ChatCompletion,
        responses.ChatCompletionChunk,
        responses.Completion,
        responses.ModelList,
        responses.ModelCard,
        responses.Health,
        responses.ErrorAnswer,
    )


def _ask(
    name: str, asked: type[BaseModel], answered: type[BaseModel], streamed: type[BaseModel], keys: bool
) -> dict[str, object]:
    said = f"The answer; as a stream, server-sent events: each a {streamed.__name__}, and [DONE] at the end."
    told = {JSON: _schema(answered), "text/event-stream": {}}
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": {JSON: _schema(asked)}},
        "responses": {"200": {"description": said, "content": told}, **_errors(ANSWERED)},
        **_security(keys),
    }


def _tell(name: str, answered: type[BaseModel], errors: Sequence[int], keys: bool) -> dict[str, object]:
    return {
        "operationId": name,
        "responses": {"200": {"description": "OK", "content": {JSON: _schema(answered)}}, **_errors(errors)},
        **_security(keys),
    }


def _errors(statuses: Sequence[int]) -> dict[str, object]:
    return {
        str(status): {"description": ERRORS[status], "content": {JSON: _schema(responses.ErrorAnswer)}}
        for status in statuses
    }


def _security(keys: bool) -> dict[str, object]:
    return {"security": [{"key": []}]} if keys else {}


def _schema(kind: type[BaseModel]) -> dict[str, object]:
    return {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
