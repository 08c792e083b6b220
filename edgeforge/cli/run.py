"""`edgeforge run`: one prompt, one answer, streamed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeforge.cli import options
from edgeforge.cli.form import Form, form_options

if TYPE_CHECKING:
    from edgeforge.cli.answering import Answer, Answers


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt")
@options.system_option
@click.option("--raw", is_flag=True, help="Continue the prompt as it stands, without the chat template.")
@options.max_new_tokens_option
@options.temperature_option
@options.top_k_option
@options.top_p_option
@options.min_p_option
@options.repetition_penalty_option
@options.seed_option
@options.stop_option
@form_options
@options.threads_option
@options.device_option
@click.option("--timings", is_flag=True, help="Say on stderr how many tokens it was, and how fast.")
@options.json_option
def run(
    bundle: Path,
    prompt: str,
    system: str | None,
    raw: bool,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    form: Form,
    threads: int | None,
    device: Literal["cpu", "cuda"] | None,
    timings: bool,
    as_json: bool,
) -> None:
    """Answer PROMPT with BUNDLE; a PROMPT of - is read from standard input.

    The prompt goes through the model's chat template where it has one. Greedy unless a temperature is given.

    \b
    Examples:
      edgeforge run artifacts/demo-cpu "What is the capital of France?"
      edgeforge run artifacts/demo-cpu "Once upon a time" --raw --temperature 0.8 --seed 1
      git diff | edgeforge run artifacts/demo-cpu - --system "Summarize this change."
      edgeforge run artifacts/demo-cpu "Invent a person." --json-schema person.json
      edgeforge run artifacts/demo-cpu "Is the sky blue?" --regex "yes|no"
    """
    from edgeforge.cli.answering import AnswerOptions, answer, speed_text, to_stdout
    from edgeforge.cli.console import emit_json, note
    from edgeforge.runtime import load

    model = load(bundle, threads=threads, device=device)
    ids = prompt_ids(model, sys.stdin.read() if prompt == "-" else prompt, system=system, raw=raw)
    chosen = AnswerOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
    guide = form.guide(model, min(max_new_tokens, model.context_length - len(ids)))
    if as_json:
        emit_json(answer_document(answer(model, ids, chosen, write=_nowhere, constraint=guide)))
        return
    done = answer(model, ids, chosen, write=to_stdout, constraint=guide)
    click.echo()
    if timings:
        note(speed_text(done.last))


def prompt_ids(model: "Answers", prompt: str, *, system: str | None, raw: bool) -> list[int]:
    """The prompt's ids, through the chat template unless `raw`; UsageError for a system message without a template."""
    from edgeforge.errors import UsageError

    if raw or model.chat_template is None:
        if system is not None:
            why = "--raw uses no chat template" if raw else "this model has no chat template"
            raise UsageError(f"--system has no place here: {why}", hint="put its text into the prompt")
        return model.encode(prompt)
    messages: list[dict[str, object]] = [{"role": "system", "content": system}] if system is not None else []
    return model.chat_ids([*messages, {"role": "user", "content": prompt}])


def answer_document(done: "Answer") -> dict[str, object]:
    """The answer for programs."""
    from dataclasses import asdict

    last = done.last
    return {
        "text": done.text,
        "finish_reason": last.finish_reason,
        "usage": None if last.usage is None else asdict(last.usage),
        "timings": None if last.timings is None else asdict(last.timings),
    }


def _nowhere(text: str) -> None:
    """With --json the text is in the object."""
