"""chat: a conversation keeps its turns, Ctrl-C stops the answer and not the program, slash commands do as they say."""

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bundle import make_bundle

from edgeforge.cli import answering
from edgeforge.cli.answering import to_stdout
from edgeforge.cli.chat import converse
from edgeforge.cli.conversation import Conversation, obey
from edgeforge.cli.prompting import piped, typed
from edgeforge.errors import UsageError

from .fakes import FakeModel
from .test_run import GREEDY


def test_the_model_sees_the_whole_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel()
    converse(model, Conversation(system="Be brief."), GREEDY, iter(["Capital of France?\n", "\n", "And Italy?\n"]))
    system = {"role": "system", "content": "Be brief."}
    first = [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris"}]
    assert model.prompts == [[system, first[0]], [system, *first, {"role": "user", "content": "And Italy?"}]]
    assert capsys.readouterr().out == "Paris\nParis\n"


def test_exit_leaves_and_what_follows_is_not_read() -> None:
    model = FakeModel()
    converse(model, Conversation(), GREEDY, iter(["/exit", "Hello"]))
    assert model.prompts == []


def test_reset_forgets_the_turns_and_keeps_the_system_message() -> None:
    conversation = Conversation(system="Be brief.", turns=[{"role": "user", "content": "Hello"}])
    obey(conversation, "/reset")
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_system_sets_and_clears_the_system_message() -> None:
    conversation = Conversation(turns=[{"role": "user", "content": "Hello"}])
    obey(conversation, "/system Speak like a pirate.")
    assert conversation.messages == [{"role": "system", "content": "Speak like a pirate."}]
    obey(conversation, "/system")
    assert conversation.messages == []


def test_an_unknown_command_is_not_sent_to_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel()
    converse(model, Conversation(), GREEDY, iter(["/rest"]))
    assert model.prompts == []
    assert "There is no command /rest." in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    presses = iter([False, True])

    def during() -> None:
        if next(presses, False):
            os.kill(os.getpid(), signal.SIGINT)

    model = FakeModel(["one", "two", "three"], during=during)
    conversation = Conversation()
    before = signal.getsignal(signal.SIGINT)
    converse(model, conversation, GREEDY, iter(["Count."]))
    assert conversation.turns[-1] == {"role": "assistant", "content": "one"}
    assert "(stopped)" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_the_program() -> None:
    def during() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        converse(FakeModel(during=during), Conversation(), GREEDY, iter(["Count."]))


def test_a_conversation_that_outgrew_the_context_can_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel(context=20)
    conversation = Conversation()
    converse(model, conversation, GREEDY, iter(["x" * 50, "/reset", "Hello"]))
    captured = capsys.readouterr()
    assert "error: the prompt has 50 tokens" in captured.err
    assert "hint: /undo takes back the last question, /reset starts anew" in captured.err
    assert captured.out == "Paris\n"


def test_ctrl_d_ends_and_ctrl_c_at_the_prompt_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    def script() -> Iterator[str | type[BaseException]]:
        yield KeyboardInterrupt
        yield "Hello"
        yield EOFError

    steps = script()

    def ask(prompt: str) -> str:
        step = next(steps)
        if isinstance(step, str):
            return step
        raise step

    assert list(typed(ask)) == ["Hello"]
    assert "/exit or Ctrl-D" in capsys.readouterr().err


TALK = [
    {"role": "user", "content": "Capital of France?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "And Italy?"},
    {"role": "assistant", "content": "Rome"},
]


def test_undo_takes_back_a_question_and_its_answer() -> None:
    conversation = Conversation(system="Be brief.", turns=[dict(turn) for turn in TALK])
    assert obey(conversation, "/undo") == "Taken back."
    assert conversation.turns == TALK[:2]
    obey(conversation, "/undo")
    assert obey(conversation, "/undo") == "Nothing was asked yet."
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_retry_asks_the_last_question_again(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel(["Turin"])
    conversation = Conversation(turns=[dict(turn) for turn in TALK])
    converse(model, conversation, replace(GREEDY, temperature=1.0), iter(["/retry"]))
    assert model.prompts == [TALK[:3]]
    assert conversation.turns == [*TALK[:3], {"role": "assistant", "content": "Turin"}]
    assert capsys.readouterr().err == ""
    converse(model, conversation, GREEDY, iter(["/retry", "/reset", "/retry"]))
    said = capsys.readouterr().err
    assert "the same answer: --temperature" in said
    assert said.endswith("Nothing was asked yet.\n")


def test_save_writes_messages_or_markdown_and_overwrites_nothing(tmp_path: Path) -> None:
    conversation = Conversation(system="Be brief.", turns=TALK[:2])
    obey(conversation, f"/save {tmp_path}/with space.json")
    assert json.loads((tmp_path / "with space.json").read_text()) == conversation.messages
    obey(conversation, f"/save {tmp_path}/talk.md")
    assert (tmp_path / "talk.md").read_text() == (
        "**System**\n\nBe brief.\n\n**User**\n\nCapital of France?\n\n**Assistant**\n\nParis\n"
    )
    for name, sentence in ((f"{tmp_path}/talk.md", "is there already"), ("", "needs the name of a file")):
        with pytest.raises(UsageError, match=sentence):
            obey(conversation, f"/save {name}")


def test_a_command_that_fails_does_not_end_the_chat(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    converse(FakeModel(), Conversation(), GREEDY, iter([f"/save {tmp_path}/no/such/folder", "/save", "Hello"]))
    captured = capsys.readouterr()
    assert captured.err.count("error:") == 2
    assert captured.out == "Paris\n"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\\\ntwo\\\nthree\nfour", ["one\ntwo\nthree", "four"]),
        ("one\\\n", ["one\n"]),
        ('"""one\n\ntwo"""\nthree\n', ["one\n\ntwo", "three"]),
        ('"""\n  one\n"two"\n"""\n', ['  one\n"two"']),
        ('"""one"""\n', ["one"]),
        ('"""one\ntwo\n', ["one\ntwo"]),
        ("", []),
    ],
)
def test_a_message_may_have_several_lines(text: str, messages: list[str]) -> None:
    assert list(piped(io.StringIO(text))) == messages


def test_a_text_that_begins_with_a_slash_is_no_command_where_it_has_lines() -> None:
    model = FakeModel()
    converse(model, Conversation(), GREEDY, iter(["/etc/hosts:\n127.0.0.1 localhost"]))
    assert model.prompts == [[{"role": "user", "content": "/etc/hosts:\n127.0.0.1 localhost"}]]


def test_timings_are_told_after_each_answer(capsys: pytest.CaptureFixture[str]) -> None:
    converse(FakeModel(), Conversation(), GREEDY, iter(["Hello"]), timings=True)
    assert "5 prompt tokens at 700/s" in capsys.readouterr().err


def test_an_answer_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering.sys.stdout, "isatty", lambda: True)
    to_stdout("a\x1b[31mb\n\tc\x9b")
    assert capsys.readouterr().out == "a[31mb\n\tc"


class OnTerminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgeforge.cli", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: _take_terminal(theirs), env=os.environ | environment,
        )  # fmt: skip
        os.close(theirs)
        self.said = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, what: Callable[[str], bool]) -> str:
        """What it said since the last call, once `what` holds of it."""
        end = time.monotonic() + 60
        while not what(self.said):
            assert time.monotonic() < end, self.said
            if select.select([self._ours], [], [], 0.1)[0]:
                self.said += os.read(self._ours, 4096).decode(errors="replace")
        said, self.said = self.said, ""
        return said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def _take_terminal(file: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(file, termios.TIOCSCTTY, 0)


@pytest.fixture
def on_terminal(tmp_path: Path) -> Iterator[Callable[..., OnTerminal]]:
    bundle = make_bundle(tmp_path / "b")
    opened: list[OnTerminal] = []

    def start(**environment: str) -> OnTerminal:
        arguments = ["chat", str(bundle), "--threads", "1", "--max-new-tokens", "3"]
        environment = {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "dumb", "NO_COLOR": "1"} | environment
        opened.append(OnTerminal(arguments, environment))
        opened[-1].wait_for(lambda said: ">>> " in said)
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def test_on_a_terminal_it_edits_remembers_and_survives_ctrl_c(
    on_terminal: Callable[..., OnTerminal], tmp_path: Path
) -> None:
    first = on_terminal()
    first.type("half a thou\x03")
    assert "/exit or Ctrl-D leaves" in first.wait_for(lambda said: said.count(">>> ") == 1)
    first.type("/system one\\\n")
    first.wait_for(lambda said: "... " in said)
    first.type("two\n")
    first.wait_for(lambda said: "There is no" in said or ">>> " in said)
    first.type("\x04")
    assert first.process.wait(20) == 0
    kept = tmp_path / "state" / "edgeforge" / "chat_history"
    assert kept.stat().st_mode & 0o077 == 0
    assert kept.read_text().splitlines()[-2:] == ["/system one\\", "two"]
    second = on_terminal()
    second.type("\x10\x10")  # Ctrl-P: the line before
    assert "/system one" in second.wait_for(lambda said: "/system one" in said)


def test_without_history_nothing_typed_is_kept(on_terminal: Callable[..., OnTerminal], tmp_path: Path) -> None:
    terminal = on_terminal(EDGEFORGE_NO_HISTORY="1")
    terminal.type("hi\n")
    assert "(cut off" in terminal.wait_for(lambda said: ">>> " in said)
    terminal.type("/exit\n")
    assert terminal.process.wait(20) == 0
    assert not (tmp_path / "state").exists()
