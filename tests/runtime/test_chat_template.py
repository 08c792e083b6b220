"""Chat templates render as in transformers, and cannot do more than render."""

import sys

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edgeforge.runtime.chat import knows_tools, render
from edgeforge.runtime.errors import MissingRequirement, UnusableBundle

MESSAGES = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": "  What's 1 + 1?\n"},
    {"role": "assistant", "content": "zwei 🙂"},
    {"role": "user", "content": "again"},
]
CHATML = """{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
        {{ '<|im_start|>system\nDefault<|im_end|>\n' }}
    {% endif %}
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA = """{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if tools is not none %}{{- raise_exception("no tools") }}{%- endif %}
{%- for message in messages %}{%- if message.role == 'skip' %}{%- continue %}{%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + eos_token }}
{%- endfor %}{{- {"a": "é<", "b": [1]} | tojson }}{{ [3, 4] | tojson(indent=2) }}"""

# In the manner of Llama 3.1's: tools in the first user message, calls as JSON, results from "ipython".
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Today's weather <in> a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}},
]
WITH_TOOLS = """{{- bos_token }}{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
{%- if tools is not none %}{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson(separators=(",", ":")) }}{{- "}" }}
        {%- for name, value in call.arguments | items %}{{- name + "=" + value }}{%- endfor %}
    {%- elif message.role == "tool" %}{{- "<|ipython|>" + message.content | tojson }}
    {%- else %}{{- message.role + ": " + message.content }}
    {%- endif %}
{%- endfor %}"""
CALLED = [
    *MESSAGES,
    {
        "role": "assistant",
        "tool_calls": [
            {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "a": "b"}}}
        ],
    },
    {"role": "tool", "content": '{"celsius": 21}'},
]


@pytest.mark.parametrize("template", [CHATML, LLAMA])
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_is_transformers(template: str, prompt: bool) -> None:
    theirs, _ = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )
    ours = render(template, MESSAGES, bos_token="<s>", eos_token="</s>", add_generation_prompt=prompt)
    assert ours == theirs[0]


@pytest.mark.parametrize("tools", [TOOLS, TOOLS[:1], []])
def test_tools_and_their_calls_are_rendered_as_in_transformers(tools: list[dict]) -> None:
    theirs, _ = render_jinja_template(
        [CALLED], tools=tools or None, chat_template=WITH_TOOLS, add_generation_prompt=True, bos_token="<s>"
    )
    assert render(WITH_TOOLS, CALLED, bos_token="<s>", eos_token=None, tools=tools) == theirs[0]
    assert ("get_weather" in theirs[0].split("user:")[0]) is bool(tools)


def test_llama_4s_own_template_renders_tools_as_in_transformers() -> None:
    from transformers.models.llama4.processing_llama4 import chat_template

    messages = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in MESSAGES]
    theirs, _ = render_jinja_template(
        [messages], tools=TOOLS, chat_template=chat_template, add_generation_prompt=True, bos_token="<s>"
    )
    ours = render(chat_template, messages, bos_token="<s>", eos_token=None, tools=TOOLS)
    assert ours == theirs[0]
    assert '"name": "get_weather"' in ours


def test_a_template_that_would_leave_tools_out_is_told_from_one_that_writes_them() -> None:
    assert [knows_tools(template) for template in (CHATML, WITH_TOOLS)] == [False, True]
    with pytest.raises(UnusableBundle, match="no place for tools"):
        render(CHATML, MESSAGES, bos_token=None, eos_token=None, tools=TOOLS)


def test_the_date_is_given_where_a_template_asks() -> None:
    assert len(render("{{ strftime_now('%Y-%m-%d') }}", [], bos_token=None, eos_token=None)) == 10


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ undefined.attribute }}",
    ],
)
def test_a_template_that_reaches_out_or_refuses_is_a_sentence(template: str) -> None:
    with pytest.raises(UnusableBundle, match="chat template refuses"):
        render(template, MESSAGES, bos_token=None, eos_token=None)


def test_a_template_with_a_syntax_error_is_a_sentence() -> None:
    with pytest.raises(UnusableBundle, match="not valid"):
        render("{% for x %}", MESSAGES, bos_token=None, eos_token=None)


def test_without_jinja2_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingRequirement, match="jinja2") as caught:
        render("fresh {{ 1 }}", [], bos_token=None, eos_token=None)
    assert caught.value.exit_code == 7
    assert caught.value.hint == "pip install jinja2"
