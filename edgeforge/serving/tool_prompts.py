"""A conversation with tools as a prompt: by the model's chat template where it knows tools, else described in words."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby

from edgeforge.runtime.chat import Message, knows_tools
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.model import Model
from edgeforge.serving.tools import Tool

# Llama 3.1's own words for its first user message.
INSTRUCTIONS = (
    "You have access to the following functions. To call one, answer with nothing but JSON in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}. Do not use variables.'
)


def prompt_ids(model: Model, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
    """The prompt's ids for messages in the form of OpenAI's interface: assistants' `tool_calls`, results from `tool`.

    UnusableBundle for a call that is not as it must be, or where the chat template refuses.
    """
    if model.chat_template is None or not _speaks_of_tools(messages, tools):
        return model.chat_ids(messages)
    messages = [_with_read_arguments(message) for message in messages]
    if not knows_tools(model.chat_template):
        return model.chat_ids(_in_words(messages, tools))
    definitions = [tool.definition for tool in tools]
    try:
        return model.chat_ids(messages, tools=definitions)
    except UnusableBundle:
        # Llama 3.1's refuses several calls in one message, as the interface has them.
        apart = _one_call_each(messages)
        if apart == messages:
            raise
        return model.chat_ids(apart, tools=definitions)


def _speaks_of_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
    return bool(tools) or any(message.get("role") == "tool" or "tool_calls" in message for message in messages)


def _with_read_arguments(message: Message) -> Message:
    """Calls whose arguments are an object, which templates write as JSON, rather than the text of one."""
    calls = message.get("tool_calls")
    if not calls:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    if not isinstance(calls, Sequence):
        raise UnusableBundle("tool_calls must be a list")
    return {**message, "tool_calls": [_with_read_call(call) for call in calls]}


def _with_read_call(call: object) -> Mapping[str, object]:
    match call:
        case {"function": {"name": str(name), "arguments": str() | Mapping() as arguments}, **others}:
            read = _read_arguments(name, arguments) if isinstance(arguments, str) else arguments
            return {"type": "function", "id": others.get("id"), "function": {"name": name, "arguments": read}}
        case _:
            raise UnusableBundle('a tool call must have the form {"function": {"name": ..., "arguments": ...}}')


def _read_arguments(name: str, text: str) -> Mapping[str, object]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UnusableBundle(f"the arguments of the call of {name!r} are not the text of a JSON object")
    return value


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Each call in a message of its own, with its result behind it."""
    apart: list[Message] = []
    results = {message.get("tool_call_id"): message for message in messages if message.get("role") == "tool"}
    for message in messages:
        calls = _calls(message)
        if len(calls) < 2:
            if message.get("role") != "tool" or not any(message is known for known in apart):
                apart.append(message)
            continue
        for call in calls:
            apart.append({**message, "tool_calls": [call]})
            if call.get("id") in results:
                apart.append(results[call.get("id")])
    return apart


def _in_words(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """For templates that know only system, user and assistant. Results in a row are one message: some want turns."""
    names = {call.get("id"): _function(call)["name"] for message in messages for call in _calls(message)}
    said: list[Message] = []
    for are_results, group in groupby(messages, key=lambda message: message.get("role") == "tool"):
        if are_results:
            results = [f"{names.get(each.get('tool_call_id'), 'it')} returned: {each.get('content')}" for each in group]
            said.append({"role": "user", "content": "\n".join(results)})
        else:
            said += [_calls_as_text(message) for message in group]
    return [*_system(said, tools), *(message for message in said if message.get("role") != "system")] if tools else said


def _calls_as_text(message: Message) -> Message:
    calls = [_function(call) for call in _calls(message)]
    if not calls:
        return message
    text = "; ".join(
        f'{{"name": {json.dumps(call["name"])}, "parameters": {json.dumps(call["arguments"], ensure_ascii=False)}}}'
        for call in calls
    )
    return {"role": "assistant", "content": text}


def _system(said: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    given = [str(message.get("content")) for message in said if message.get("role") == "system"]
    definitions = [json.dumps(tool.definition, ensure_ascii=False) for tool in tools]
    return [{"role": "system", "content": "\n\n".join([*given, INSTRUCTIONS, *definitions])}]


def _calls(message: Message) -> Sequence[Mapping[str, object]]:
    calls = message.get("tool_calls") or ()
    assert isinstance(calls, Sequence)
    return calls


def _function(call: Mapping[str, object]) -> Mapping[str, object]:
    function = call["function"]
    assert isinstance(function, Mapping)
    return function
