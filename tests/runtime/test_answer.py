"""`python BUNDLE ...`: the answer on stdout, one sentence on stderr otherwise, the toolchain's exit codes."""

import io
from pathlib import Path

import pytest
from tiny_bundle import make_bundle

from edgeforge import runtime
from edgeforge.runtime.answer import main
from edgeforge.runtime.model import Model


def test_it_answers_through_the_chat_template(tiny: Path, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Hi", "--max-new-tokens", "9"], bundle=tiny) == 0
    chunks = model.chat([{"role": "user", "content": "Hi"}], max_new_tokens=9, temperature=0)
    assert capsys.readouterr().out == "".join(chunk.text for chunk in chunks) + "\n"


def test_raw_continues_the_prompt(tiny: Path, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Hi", "--raw", "--max-new-tokens", "9"], bundle=tiny) == 0
    chunks = model.generate("Hi", max_new_tokens=9, temperature=0)
    assert capsys.readouterr().out == "".join(chunk.text for chunk in chunks) + "\n"


def test_a_system_message_comes_first(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Hi", "--max-new-tokens", "9"], bundle=tiny) == 0
    plain = capsys.readouterr().out
    assert main(["Hi", "--max-new-tokens", "9", "--system", "Be kind"], bundle=tiny) == 0
    assert capsys.readouterr().out != plain


def test_a_dash_reads_the_prompt_from_stdin(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["Hi", "--max-new-tokens", "9"], bundle=tiny)
    expected = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi"))
    assert main(["-", "--max-new-tokens", "9"], bundle=tiny) == 0
    assert capsys.readouterr().out == expected


def test_no_prompt_is_a_usage_error(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], bundle=tiny) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "usage: python BUNDLE" in output.err
    assert "prompt" in output.err


def test_help_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], bundle=tmp_path) == 0
    assert "What is the capital of France?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["x" * 100, "--raw"], 3, "100 tokens, more than the bundle's context of 64"),
        (["Hi", "--temperature", "-1"], 3, "temperature"),
        (["Hi", "--device", "cuda"], 7, "CUDAExecutionProvider"),
    ],
)
def test_a_request_that_cannot_be_served_is_one_sentence(
    tiny: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str
) -> None:
    assert main(arguments, bundle=tiny) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert said in output.err


def test_an_older_package_than_required_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "b")
    monkeypatch.setattr("onnxruntime.__version__", "1.9.1")
    with pytest.raises(runtime.MissingRequirement, match=r"onnxruntime >=1\.23, found 1\.9\.1"):
        runtime.load(bundle)


def test_a_cuda_bundle_without_cuda_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "b", provider="CUDAExecutionProvider")
    assert main(["Hi"], bundle=bundle) == 7
    assert "device cpu" in capsys.readouterr().err
    assert main(["Hi", "--device", "cpu", "--max-new-tokens", "3"], bundle=bundle) == 0
