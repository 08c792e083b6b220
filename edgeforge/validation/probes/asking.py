"""Greedy answers of both models, as long as they are needed."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from edgeforge.runtime.model import Model
from edgeforge.validation.probes.common import Subject, Tell

T = TypeVar("T")


def ask_both(
    subject: Subject, prompts: Sequence[str], ask: Callable[[Model, str], T], tell: Tell
) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """What `ask` makes of each prompt, with the original and with the bundle."""
    found: list[T] = []
    for model in (subject.reference, subject.candidate):
        for prompt in prompts:
            found.append(ask(model, prompt))
            tell(len(found) / (2 * len(prompts)))
    return tuple(found[: len(prompts)]), tuple(found[len(prompts) :])


def answer(model: Model, question: str, *, max_new_tokens: int, enough: Callable[[str], bool]) -> str:
    """What the model answers, or writes on where it has no chat template; cut off once it is `enough`."""
    prompt = question if model.chat_template is None else model.chat_ids([{"role": "user", "content": question}])
    text = ""
    for chunk in model.generate(prompt, max_new_tokens=max_new_tokens, temperature=0.0, repetition_penalty=1.0):
        text += chunk.text
        if enough(text):
            break
    return text


def continuation(model: Model, prompt: str, *, max_new_tokens: int) -> tuple[int, ...]:
    """The ids that come after a plain prompt, most likely first, until the text ends."""
    chunks = model.generate(prompt, max_new_tokens=max_new_tokens, temperature=0.0, repetition_penalty=1.0)
    return tuple(token for chunk in chunks for token in chunk.token_ids)
