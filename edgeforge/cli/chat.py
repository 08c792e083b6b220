"""`edgeforge chat`: a conversation on the terminal."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

import click

from edgeforge.cli import options
from edgeforge.cli.answering import AnswerOptions, Answers, answer, speed_text, to_stdout
from edgeforge.cli.conversation import Conversation, obey
from edgeforge.cli.prompting import editing, piped, typed
from edgeforge.errors import EdgeForgeError
from edgeforge.runtime.errors import BundleError

if TYPE_CHECKING:
    from edgeforge.cli.answering import Answer


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@options.system_option
@options.max_new_tokens_option
@options.temperature_option
@options.top_k_option
@options.top_p_option
@options.min_p_option
@options.repetition_penalty_option
@options.seed_option
@options.stop_option
@options.threads_option
@options.device_option
@click.option("--timings", is_flag=True, help="Say on stderr how many tokens each answer was, and how fast.")
@click.option(
    "--no-history",
    is_flag=True,
    envvar="EDGEFORGE_NO_HISTORY",
    show_envvar=True,
    help="Neither read nor keep what is typed.",
)
def chat(
    bundle: Path,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    threads: int | None,
    device: Literal["cpu", "cuda"] | None,
    timings: bool,
    no_history: bool,
) -> None:
    """Talk with BUNDLE. Ctrl-C stops an answer; /exit or Ctrl-D leaves; /help lists the rest.

    What you type is kept for the next time in $XDG_STATE_HOME/edgeforge/chat_history (~/.local/state).

    \b
    Examples:
      edgeforge chat artifacts/demo-cpu
      edgeforge chat artifacts/demo-cpu --system "Answer in one sentence." --temperature 0.7
    """
    from edgeforge.cli.console import note
    from edgeforge.errors import UnusableInput
    from edgeforge.runtime import load

    model = load(bundle, threads=threads, device=device)
    if model.chat_template is None:
        raise UnusableInput(
            f"{bundle} has no chat template: it continues texts, it was not trained to answer",
            hint="use `edgeforge run BUNDLE PROMPT`",
        )
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
    conversation = Conversation(system=system)
    if not sys.stdin.isatty():
        converse(model, conversation, chosen, piped(sys.stdin), timings=timings)
        return
    note("/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    with editing(keep_history=not no_history):
        converse(model, conversation, chosen, typed(), timings=timings)


def converse(
    model: Answers,
    conversation: Conversation,
    chosen: AnswerOptions,
    messages: Iterator[str],
    *,
    timings: bool = False,
) -> None:
    """Answer message by message until they end or one says /exit."""
    for message in messages:
        said = message.strip()
        if said in ("/exit", "/quit", "/bye"):
            return
        if said == "/retry":
            _retry(model, conversation, chosen, timings=timings)
        elif said.startswith("/") and "\n" not in said:
            _obey(conversation, said)
        elif said:
            _take_turn(model, conversation, chosen, said, timings=timings)


def _obey(conversation: Conversation, said: str) -> None:
    from edgeforge.cli.console import explain, note, show_failure

    try:
        note(obey(conversation, said))
    except (EdgeForgeError, OSError) as error:
        show_failure(explain(error))


def _retry(model: Answers, conversation: Conversation, chosen: AnswerOptions, *, timings: bool) -> None:
    from edgeforge.cli.console import note

    asked = conversation.take_back()
    if asked is None:
        note("Nothing was asked yet.")
        return
    if chosen.temperature == 0 or chosen.seed is not None:
        note("(the same answer: --temperature, and no --seed, makes answers differ)")
    _take_turn(model, conversation, chosen, asked, timings=timings)


def _take_turn(model: Answers, conversation: Conversation, chosen: AnswerOptions, said: str, *, timings: bool) -> None:
    from edgeforge.cli.console import Failure, note, show_failure

    conversation.turns.append({"role": "user", "content": said})
    try:
        done = _cancellable_answer(model, conversation, chosen)
    except BundleError as error:
        # Most likely the conversation outgrew the context: the user can go on after a /reset.
        conversation.turns.pop()
        hint = "/undo takes back the last question, /reset starts anew"
        show_failure(Failure(exit_code=error.exit_code, message=error.message, hint=hint))
        return
    conversation.turns.append({"role": "assistant", "content": done.text})
    click.echo()
    if done.last.finish_reason == "cancelled":
        note("(stopped)")
    elif done.last.finish_reason == "length":
        note("(cut off: --max-new-tokens or the context is reached)")
    if timings:
        note(speed_text(done.last))


def _cancellable_answer(model: Answers, conversation: Conversation, chosen: AnswerOptions) -> "Answer":
    with _ctrl_c_sets() as cancel:
        ids = model.chat_ids(conversation.messages)
        return answer(model, ids, chosen, write=to_stdout, cancel=cancel)


@contextmanager
def _ctrl_c_sets() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that the answer ends between two tokens; a second one ends the program."""
    cancel = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)
