"""Chat templates render as in transformers, and cannot do more than render."""

import sys

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edgeforge.runtime.chat import render
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


@pytest.mark.parametrize("template", [CHATML, LLAMA])
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_is_transformers(template: str, prompt: bool) -> None:
    theirs, _ = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )
    ours = render(template, MESSAGES, bos_token="<s>", eos_token="</s>", add_generation_prompt=prompt)
    assert ours == theirs[0]


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
