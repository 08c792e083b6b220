"""Chat templates: messages in, the prompt's text out. Needs jinja2, which is imported when the first template is
rendered.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn

from .errors import MissingRequirement, UnusableBundle

if TYPE_CHECKING:
    from jinja2 import Environment, Template

Message = Mapping[str, object]


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str | None,
    eos_token: str | None,
    tools: Sequence[Mapping[str, object]] = (),
    add_generation_prompt: bool = True,
    now: datetime.datetime | None = None,
) -> str:
    """The prompt as transformers' apply_chat_template renders it; UnusableBundle where the template refuses.

    `tools` are functions that the answer may call, each {"type": "function", "function": {"name": ..., "description":
    ..., "parameters": JSON Schema}}; UnusableBundle where the template would leave them out. `now` is for templates
    that write the date.
    """
    compiled = _compile(template)
    if tools and not knows_tools(template):
        raise UnusableBundle(
            "this model's chat template has no place for tools", hint="describe them in the system message"
        )
    try:
        return compiled.render(
            messages=messages,
            bos_token=bos_token or "",
            eos_token=eos_token or "",
            add_generation_prompt=add_generation_prompt,
            tools=list(tools) or None,
            documents=None,
            strftime_now=(now or datetime.datetime.now()).strftime,
        )
    except Exception as error:  # a template is a program: what it raises is its author's choice
        raise UnusableBundle(f"the chat template refuses these messages: {error}") from error


@lru_cache(maxsize=8)
def knows_tools(template: str) -> bool:
    """Whether the template reads the variable `tools`; UnusableBundle where it is no template."""
    _compile(template)
    from jinja2.nodes import Name

    return any(name.name == "tools" for name in _environment().parse(template).find_all(Name))


@lru_cache(maxsize=8)
def _compile(template: str) -> "Template":
    environment = _environment()
    from jinja2 import TemplateError

    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise UnusableBundle(f"the bundle's chat template is not valid: {error}") from error


def _environment() -> "Environment":
    try:
        from jinja2 import sandbox
    except ImportError:
        raise MissingRequirement("chat templates need the package jinja2", hint="pip install jinja2") from None
    # The template comes with the model, from strangers: it may compute, and touch nothing.
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own escapes HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)
