"""chat: a conversation keeps its turns, Ctrl-C stops the answer and not the program, slash commands do as they say."""

import os
import signal
from collections.abc import Iterator

import pytest

from edgeforge.cli.chat import Conversation, _read_terminal, converse, obey

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
    assert "hint: /reset" in captured.err
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

    assert list(_read_terminal(ask)) == ["Hello"]
    assert "/exit or Ctrl-D" in capsys.readouterr().err
