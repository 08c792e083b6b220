"""Greedy answers, as long as they are needed."""

from collections.abc import Callable

from edgeforge.runtime.model import Model


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
