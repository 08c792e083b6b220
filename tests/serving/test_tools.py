"""Tools: prompts are those of the model's own template, calls are told from text, and a required call is one."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tiny_bundle import make_bundle

from edgeforge import runtime
from edgeforge.runtime.chat import render
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.model import Model
from edgeforge.runtime.sampling import Sampler, Sampling
from edgeforge.serving.tool_prompts import prompt_ids
from edgeforge.serving.tools import CallReader, Tool, ToolCall, ToolUse, call_guide, read_tool_use

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Today's weather in a city.",
        "parameters": {
            "type": "object",
            "$defs": {"unit": {"enum": ["celsius", "fahrenheit"]}},
            "properties": {"city": {"type": "string", "maxLength": 6}, "unit": {"$ref": "#/$defs/unit"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "now"}}
USE = read_tool_use([WEATHER, TIME], "auto")
WEATHER_CALL = '{"name": "get_weather", "parameters": {"city": "Zürich"}}'
WEATHER_READ = ToolCall(name="get_weather", arguments='{"city": "Zürich"}')
# Says what Llama 3.1's template says, shorter: one call a message, its arguments as JSON, results from ipython.
TEMPLATE = """{{- bos_token }}
{%- if tools is not none %}
    {{- "<|start_header_id|>system<|end_header_id|>\\n\\nEnvironment: ipython\\n<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception("only single tool-calls at once!") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content | tojson + "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" }}
        {%- if loop.first and tools is not none %}
            {%- for tool in tools %}{{- tool | tojson(indent=4) + "\\n\\n" }}{%- endfor %}
        {%- endif %}
        {{- message.content + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}{%- endif %}"""


def called(*calls: tuple[str, str, str]) -> dict[str, object]:
    """An assistant's message with calls (id, name, arguments), as OpenAI's clients send it back."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in calls
        ],
    }


QUESTION = {"role": "user", "content": "How is the weather in Zürich?"}
CALL = called(("1", "get_weather", '{"city": "Zürich"}'))
RESULT = {"role": "tool", "tool_call_id": "1", "content": '{"celsius": 21}'}
TWO_CALLS = called(("1", "get_weather", '{"city": "Zürich"}'), ("2", "now", ""))
SECOND_RESULT = {"role": "tool", "tool_call_id": "2", "content": "noon"}


def spoken(template: str, messages: Sequence[Mapping[str, object]], tools: Sequence[Tool]) -> str:
    """The text of the prompt."""
    texts: list[str] = []

    def chat_ids(messages: Sequence[Mapping[str, object]], *, tools: Sequence[Mapping[str, object]] = ()) -> list[int]:
        texts.append(render(template, messages, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", tools=tools))
        return [1]

    model = SimpleNamespace(chat_template=template, chat_ids=chat_ids)
    assert prompt_ids(model, messages, tools) == [1]  # type: ignore[arg-type]
    return texts[-1]


@pytest.fixture(scope="module")
def llama_3_1(test_data: Path) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(test_data / "tokenizers" / "llama3")


@pytest.mark.parametrize("messages", [[QUESTION], [QUESTION, CALL, RESULT]])
@pytest.mark.parametrize("tools", [(), USE.tools])
def test_prompts_are_those_of_transformers_with_llama_3_1s_tokenizer(
    llama_3_1: "PreTrainedTokenizerFast", messages: list[dict], tools: tuple[Tool, ...]
) -> None:
    theirs = [dict(message) for message in messages]
    if len(theirs) > 1:  # transformers wants arguments as an object, OpenAI's interface has their text
        theirs[1] = {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}],
        }
    expected = llama_3_1.apply_chat_template(
        theirs, tools=[tool.definition for tool in tools] or None, chat_template=TEMPLATE, add_generation_prompt=True
    )
    ours = llama_3_1.backend_tokenizer.encode(spoken(TEMPLATE, messages, tools), add_special_tokens=False).ids
    assert ours == expected


def test_several_calls_at_once_become_one_after_the_other_where_the_template_wants_that() -> None:
    text = spoken(TEMPLATE, [QUESTION, TWO_CALLS, RESULT, SECOND_RESULT, QUESTION], USE.tools)
    places = [
        text.index(part) for part in (WEATHER_CALL, 'celsius\\": 21', '"name": "now", "parameters": {}', '"noon"')
    ]
    assert places == sorted(places)


CHATML = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"


def test_a_template_without_tools_is_told_of_them_in_the_system_message() -> None:
    system = {"role": "system", "content": "Be brief."}
    text = spoken(CHATML, [system, QUESTION, TWO_CALLS, RESULT, SECOND_RESULT], USE.tools)
    assert text.startswith("<system>Be brief.\n\nYou have access to the following functions.")
    assert json.dumps(WEATHER) in text
    assert text.endswith(
        "<user>How is the weather in Zürich?"
        f'<assistant>{WEATHER_CALL}; {{"name": "now", "parameters": {{}}}}'
        '<user>get_weather returned: {"celsius": 21}\nnow returned: noon'
    )


def test_past_calls_are_told_though_the_tools_are_gone() -> None:
    assert spoken(CHATML, [QUESTION, CALL, RESULT], ()).endswith(
        f'{WEATHER_CALL}<user>get_weather returned: {{"celsius": 21}}'
    )


def test_no_tools_no_change() -> None:
    assert spoken(CHATML, [{**QUESTION, "tool_calls": None}], ()) == "<user>How is the weather in Zürich?"


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"function": {"name": "now"}},
        {"function": {"name": "now", "arguments": "[1]"}},
        {"function": {"name": "now", "arguments": "{"}},
        "now",
    ],
)
def test_a_past_call_that_is_none_is_a_sentence(call: object) -> None:
    with pytest.raises(UnusableBundle, match="call"):
        spoken(TEMPLATE, [QUESTION, {"role": "assistant", "tool_calls": [call]}], ())


@pytest.mark.parametrize(
    ("answer", "content", "calls"),
    [
        (WEATHER_CALL, "", (WEATHER_READ,)),
        (f"\n {WEATHER_CALL} \n", "", (WEATHER_READ,)),
        (f"<|python_tag|>{WEATHER_CALL}", "", (WEATHER_READ,)),
        ('{"type": "function", "name": "now", "parameters": {}}', "", (ToolCall(name="now", arguments="{}"),)),
        ('{"name": "now", "arguments": {}}', "", (ToolCall(name="now", arguments="{}"),)),
        (f"{WEATHER_CALL}; {WEATHER_CALL}", "", (WEATHER_READ, WEATHER_READ)),
        (f"{WEATHER_CALL}\n{WEATHER_CALL}", "", (WEATHER_READ, WEATHER_READ)),
        (f"{WEATHER_CALL} That is it.", "That is it.", (WEATHER_READ,)),
        (
            'get_weather.call(city="Zürich (ZH)")',
            "",
            (ToolCall(name="get_weather", arguments='{"city": "Zürich (ZH)"}'),),
        ),
        ("now.call()", "", (ToolCall(name="now", arguments="{}"),)),
        ("It is sunny.", "It is sunny.", ()),
        (" It is {sunny}.", " It is {sunny}.", ()),
        ('{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', ()),
        ('{"name": "now", "parameters": "{}"}', '{"name": "now", "parameters": "{}"}', ()),
        ('{"name": ["now"], "parameters": {}}', '{"name": ["now"], "parameters": {}}', ()),
        (WEATHER_CALL[:-3], WEATHER_CALL[:-3], ()),
        ('{"temperature": 21}', '{"temperature": 21}', ()),
        ("now.call(", "now.call(", ()),
        ("now", "now", ()),
        ("", "", ()),
    ],
)
@given(cuts=st.lists(st.integers(0, 120), max_size=6))
def test_calls_are_told_from_text_however_the_answer_is_cut(
    answer: str, content: str, calls: tuple[ToolCall, ...], cuts: list[int]
) -> None:
    reader = CallReader(USE)
    edges = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    shown = "".join(reader.push(answer[start:end]) for start, end in pairwise(edges))
    rest, found = reader.finish()
    assert (shown + rest, found) == (content, calls)
    assert not (calls and shown)


def test_text_streams_as_soon_as_it_can_be_no_call() -> None:
    reader = CallReader(USE)
    assert [reader.push(piece) for piece in ('{"', "te", "mp", '": {"name')] == ["", '{"te', "mp", '": {"name']


def test_without_tools_everything_streams() -> None:
    assert CallReader(ToolUse()).push('{"name') == '{"name'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return runtime.load(make_bundle(tmp_path_factory.mktemp("bundles") / "b"), threads=1)


def test_a_required_call_is_one_whatever_the_model_wants(model: Model) -> None:
    seen = set()
    for seed in range(20):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), [0], 260)
        random = np.random.default_rng(seed)
        guide = call_guide(model, USE.tools)
        ids: list[int] = []
        while not guide.finished:
            ids.append(sampler.choose(random.standard_normal(260).astype(np.float32), guide.mask()))
            guide.accept(ids[-1])
        reader = CallReader(USE)
        assert reader.push(model.decode(ids)) == ""
        rest, (call,) = reader.finish()
        assert rest == ""
        seen.add(call.name)
        arguments = json.loads(call.arguments)
        if call.name == "get_weather":
            Draft202012Validator(WEATHER["function"]["parameters"]).validate(arguments)  # type: ignore[index]
            assert set(arguments) <= {"city", "unit"}
        else:
            assert arguments == {}
    assert seen == {"get_weather", "now"}


def test_parameters_that_cannot_be_followed_name_the_tool(model: Model) -> None:
    bad = {"type": "function", "function": {"name": "bad", "parameters": {"type": "object", "not": {}}}}
    with pytest.raises(UnusableBundle, match="the parameters of tool 'bad': the JSON Schema cannot be used"):
        call_guide(model, read_tool_use([bad], "required").tools)


@pytest.mark.parametrize(
    ("choice", "names", "must_call"),
    [
        (None, ["get_weather", "now"], False),
        ("auto", ["get_weather", "now"], False),
        ("none", [], False),
        ("required", ["get_weather", "now"], True),
        ({"type": "function", "function": {"name": "now"}}, ["now"], True),
    ],
)
def test_tool_choice_says_which_tools_and_whether(choice: object, names: list[str], must_call: bool) -> None:
    use = read_tool_use([WEATHER, TIME], choice)
    assert ([tool.name for tool in use.tools], use.must_call) == (names, must_call)


@pytest.mark.parametrize(
    ("tools", "choice", "sentence"),
    [
        ({}, None, "tools must be a list"),
        (["now"], None, r"tools\[0\] must have the form"),
        ([{"type": "function", "function": {}}], None, r"tools\[0\] must have the form"),
        ([TIME, {"type": "function", "function": {"name": "no spaces"}}], None, r"tools\[1\] has the name 'no spaces'"),
        ([{"type": "function", "function": {"name": "f", "parameters": [1]}}], None, "must be a JSON Schema"),
        ([TIME, TIME], None, "two tools named 'now'"),
        (None, "required", "there are no tools"),
        ([TIME], {"type": "function", "function": {"name": "never"}}, "names 'never'"),
        ([TIME], "often", "must be none, auto, required"),
    ],
)
def test_tools_that_are_none_are_a_sentence(tools: object, choice: object, sentence: str) -> None:
    with pytest.raises(UnusableBundle, match=sentence):
        read_tool_use(tools, choice)
