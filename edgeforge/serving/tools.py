"""Tools in the format of Llama 3.1: what the prompt says of them, and which of them an answer calls.

The prompt is the chat template's own where it knows tools (the template of Llama 3.1 puts them into the first user
message). For other templates, SmolLM2's say, they are described in the system message, calls are repeated as the JSON
that made them, and results come from the user: any model can be asked that way, though only one that was trained for
tools answers well.

An answer that is a call is {"name": ..., "parameters": {...}}, several with a semicolon between them, or
`name.call(key="value")` for what Llama calls its built-in tools. Where a call is required, a grammar leaves nothing
else. Source: Meta's page "Llama 3.1: model cards and prompt formats", JSON-based and built-in tool calling.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeforge.runtime import guidance
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.guidance import Guide
from edgeforge.runtime.model import Model

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # as OpenAI's interface has it
PYTHON_TAG = "<|python_tag|>"  # in the text only where a tokenizer does not count it among the special tokens
FIRST_KEYS = ("name", "type", "function", "parameters", "arguments")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that an answer may call; `definition` is the entry of the request's `tools`, for the template."""

    name: str
    parameters: Mapping[str, object]
    definition: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The tools that this answer may call, or of which it must call one."""

    tools: tuple[Tool, ...] = ()
    must_call: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


def read_tool_use(tools: object, tool_choice: object) -> ToolUse:
    """The request's `tools` and `tool_choice` (None where they were not given); UnusableBundle says what is wrong."""
    found = _read_tools(tools)
    match tool_choice:
        case "none":
            return ToolUse()
        case None | "auto":
            return ToolUse(tools=found)
        case "required" if found:
            return ToolUse(tools=found, must_call=True)
        case {"type": "function", "function": {"name": str(name)}}:
            named = tuple(tool for tool in found if tool.name == name)
            if not named:
                raise UnusableBundle(f"tool_choice names {name!r}, which is not among the tools")
            return ToolUse(tools=named, must_call=True)
        case "required":
            raise UnusableBundle("tool_choice is required, and there are no tools")
        case _:
            raise UnusableBundle("tool_choice must be none, auto, required, or name one of the tools")


def _read_tools(value: object) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UnusableBundle("tools must be a list")
    found = tuple(_read_tool(entry, index) for index, entry in enumerate(value))
    names = [tool.name for tool in found]
    for name in names:
        if names.count(name) > 1:
            raise UnusableBundle(f"there are two tools named {name!r}")
    return found


def _read_tool(entry: object, index: int) -> Tool:
    match entry:
        case {"type": "function", "function": {"name": str(name), **function}} if NAME.fullmatch(name):
            parameters = function.get("parameters") or {"properties": {}}
            if not isinstance(parameters, Mapping):
                raise UnusableBundle(f"the parameters of tool {name!r} must be a JSON Schema")
            assert isinstance(entry, Mapping)
            return Tool(name=name, parameters=parameters, definition=entry)
        case {"type": "function", "function": {"name": name}}:
            raise UnusableBundle(f"tools[{index}] has the name {name!r}: it must be 1 to 64 letters, digits, _ and -")
        case _:
            raise UnusableBundle(
                f'tools[{index}] must have the form {{"type": "function", "function": {{"name": ...}}}}'
            )


def call_guide(model: Model, tools: Sequence[Tool]) -> Guide:
    """A guide to one call of one of `tools`, with arguments that satisfy its parameters and no others.

    UnusableBundle for parameters that cannot be followed.
    """
    rules = [f"start: {' | '.join(f'call{index}' for index in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        schema = {"type": "object", "additionalProperties": False, **tool.parameters}
        try:
            guidance.json_schema(model, schema)
        except UnusableBundle as error:
            raise UnusableBundle(f"the parameters of tool {tool.name!r}: {error.message}") from None
        schema["x-guidance"] = {"whitespace_pattern": guidance.JSON_WHITESPACE}
        rules.append(rf'call{index}: "{{\"name\": \"{tool.name}\", \"parameters\": " parameters{index} "}}"')
        rules.append(f"parameters{index}: %json {json.dumps(schema)}")
    return guidance.grammar(model, "\n".join(rules))


class CallReader:
    """Tells calls from text while an answer streams: text that may be the beginning of a call is held back."""

    def __init__(self, use: ToolUse) -> None:
        self._tools = {tool.name: tool for tool in use.tools}
        self._held = ""
        self._holding = bool(use.tools)

    def push(self, text: str) -> str:
        """What of the answer so far is certainly no call, and was not yet given."""
        self._held += text
        if self._holding and self._may_be_call():
            return ""
        self._holding = False
        return self._take()

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """At the answer's end: what is left of its text, and the calls that it began with."""
        if not self._holding:
            return self._take(), ()
        text = self._held.strip().removeprefix(PYTHON_TAG).lstrip()
        calls, rest = self._json_calls(text)
        if not calls:
            calls, rest = self._builtin_call(text)
        return (rest.strip(), tuple(calls)) if calls else (self._take(), ())

    def _take(self) -> str:
        held, self._held = self._held, ""
        return held

    def _may_be_call(self) -> bool:
        text = self._held.lstrip()
        if PYTHON_TAG.startswith(text):
            return True
        text = text.removeprefix(PYTHON_TAG).lstrip()
        compact = "".join(text.split())
        starts = [f'{{"{key}"' for key in FIRST_KEYS] + [f"{name}.call(" for name in self._tools]
        return any(compact.startswith(start) or start.startswith(compact) for start in starts)

    def _json_calls(self, text: str) -> tuple[list[ToolCall], str]:
        calls: list[ToolCall] = []
        while text.startswith("{"):
            try:
                value, end = json.JSONDecoder().raw_decode(text)
            except (ValueError, RecursionError):
                break
            name, arguments = value.get("name", value.get("function")), value.get("parameters", value.get("arguments"))
            if not isinstance(name, str) or name not in self._tools or not isinstance(arguments, dict):
                break
            calls.append(ToolCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False)))
            text = text[end:].lstrip().removeprefix(";").lstrip()
        return calls, text

    def _builtin_call(self, text: str) -> tuple[list[ToolCall], str]:
        call = re.match(r'([\w-]+)\.call\(((?:[^")]|"[^"]*")*)\)', text)
        if call is None or call[1] not in self._tools:
            return [], text
        arguments = dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', call[2]))
        return [ToolCall(name=call[1], arguments=json.dumps(arguments, ensure_ascii=False))], text[call.end() :]
