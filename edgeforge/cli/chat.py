"""`edgeforge chat`: a conversation on the terminal."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

import click

from edgeforge.cli import options
from edgeforge.cli.answering import AnswerOptions, Answers, answer
from edgeforge.runtime.errors import BundleError

if TYPE_CHECKING:
    from edgeforge.cli.answering import Answer

HELP = """/reset         forget the conversation
/system TEXT   set the system message, and forget the conversation
/exit          leave (as Ctrl-D does)
Ctrl-C         stop an answer"""


@dataclass(slots=True, kw_only=True)
class Conversation:
    """What was said so far. `system` stays over a reset."""

    system: str | None = None
    turns: list[dict[str, object]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, object]]:
        head: list[dict[str, object]] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*head, *self.turns]


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
) -> None:
    """Talk with BUNDLE. Ctrl-C stops an answer; /exit or Ctrl-D leaves; /help lists the rest.

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
    read = _read_lines() if not sys.stdin.isatty() else _read_terminal()
    if sys.stdin.isatty():
        note("/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    converse(model, Conversation(system=system), chosen, read)


def converse(model: Answers, conversation: Conversation, chosen: AnswerOptions, lines: Iterator[str]) -> None:
    """Answer line by line until the lines end or one says /exit."""
    from edgeforge.cli.console import note

    for line in lines:
        said = line.strip()
        if said in ("/exit", "/quit", "/bye"):
            return
        if said.startswith("/"):
            note(obey(conversation, said))
        elif said:
            _take_turn(model, conversation, chosen, said)


def obey(conversation: Conversation, said: str) -> str:
    """Carry out a slash command; what to tell the user."""
    word, _, rest = said.partition(" ")
    match word:
        case "/reset":
            conversation.turns.clear()
            return "The conversation starts anew."
        case "/system":
            conversation.turns.clear()
            conversation.system = rest.strip() or None
            return "The system message is set." if conversation.system else "There is no system message now."
        case "/help":
            return HELP
        case _:
            return f"There is no command {word}.\n{HELP}"


def _take_turn(model: Answers, conversation: Conversation, chosen: AnswerOptions, said: str) -> None:
    from edgeforge.cli.console import Failure, note, show_failure

    conversation.turns.append({"role": "user", "content": said})
    try:
        done = _cancellable_answer(model, conversation, chosen)
    except BundleError as error:
        # Most likely the conversation outgrew the context: the user can go on after a /reset.
        conversation.turns.pop()
        hint = "/reset starts anew"
        show_failure(Failure(exit_code=error.exit_code, message=error.message, hint=hint))
        return
    conversation.turns.append({"role": "assistant", "content": done.text})
    click.echo()
    if done.last.finish_reason == "cancelled":
        note("(stopped)")
    elif done.last.finish_reason == "length":
        note("(cut off: --max-new-tokens or the context is reached)")


def _cancellable_answer(model: Answers, conversation: Conversation, chosen: AnswerOptions) -> "Answer":
    with _ctrl_c_sets() as cancel:
        ids = model.chat_ids(conversation.messages)
        return answer(model, ids, chosen, write=lambda text: click.echo(text, nl=False), cancel=cancel)


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


def _read_lines() -> Iterator[str]:
    yield from sys.stdin


def _read_terminal(ask: Callable[[str], str] = input) -> Iterator[str]:
    """Lines typed at a prompt, with editing and history; Ctrl-D ends, Ctrl-C tells how to leave."""
    from edgeforge.cli.console import note

    with suppress(ImportError):
        import readline  # noqa: F401  (importing it gives `input` editing)
    while True:
        try:
            yield ask(">>> ")
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            note("\n(/exit or Ctrl-D leaves)")
