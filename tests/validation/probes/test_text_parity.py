"""Another tokenizer or another template in the bundle than the checkpoint's: the probes say so, and where."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from built import Build
from tiny_bundle import make_bundle

from edgeforge.model.tokenizer import tokenizer_from_directory
from edgeforge.validation.findings import ProbeVerdict
from edgeforge.validation.probes.common import Found, Subject
from edgeforge.validation.probes.text_parity import probe_chat_template, probe_tokenizer

from .broken import changed, subject, unheard


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny") / "b")


def against(original: Path, bundle: Path) -> Subject:
    checkpoint = SimpleNamespace(tokenizer=tokenizer_from_directory(original / "model"))
    return subject(None, None, bundle=bundle, checkpoint=checkpoint)


def test_the_same_files_pass(original: Path) -> None:
    both = against(original, original)
    tokenizer, template = probe_tokenizer(both, unheard), probe_chat_template(both, unheard)
    assert (tokenizer.verdict, template.verdict) == ("pass", "pass")
    (figure,) = template.figures
    assert (figure.reference, figure.candidate) == (9, 9)


def edit_tokenizer(key: str, value: object) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        path = bundle / "model" / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return edit


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("normalizer", {"type": "Lowercase"}, "'Hello world' becomes 11 ids"),
        ("decoder", None, "the ids of ' ' become the text"),
        ("model", None, "cannot be opened"),
    ],
)
def test_another_tokenizer_fails(original: Path, tmp_path: Path, key: str, value: object, said: str) -> None:
    bundle = changed(original, tmp_path / "b", edit_tokenizer(key, value))
    found = probe_tokenizer(against(original, bundle), unheard)
    assert found.verdict == "fail"
    assert said in found.summary


def test_vectors_of_another_original_fail_though_the_files_agree(stories_int4: Build, tmp_path: Path) -> None:
    def edit(bundle: Path) -> None:
        path = bundle / "parity.json"
        parity = json.loads(path.read_text())
        parity["texts"][3]["ids"][-1] += 1
        path.write_text(json.dumps(parity))

    bundle = changed(stories_int4.bundle, tmp_path / "b", edit)
    found = probe_tokenizer(subject(None, None, bundle=bundle, checkpoint=stories_int4.checkpoint), unheard)
    assert found.verdict == "fail"
    assert "'Hello world' has other ids than the original's (parity.json)" in found.summary


def template(text: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / "model" / "chat_template.jinja").write_text(text) and None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ messages[0]['content'] }}", "Chats become other prompts: the chat user is rendered 'Hello'"),
        ("{{ raise_exception('never') }}", "refused, where the original renders it"),
    ],
)
def test_another_template_fails(original: Path, tmp_path: Path, text: str, said: str) -> None:
    found = probe_chat_template(against(original, changed(original, tmp_path / "b", template(text))), unheard)
    assert found.verdict == "fail"
    assert said in found.summary


@pytest.mark.parametrize(
    ("theirs", "ours", "verdict"), [(True, False, "fail"), (False, True, "fail"), (False, False, "skipped")]
)
def test_a_template_that_only_one_of_the_two_has_fails(
    tmp_path: Path, theirs: bool, ours: bool, verdict: ProbeVerdict
) -> None:
    bundles = [make_bundle(tmp_path / name, chat=chat) for name, chat in (("theirs", theirs), ("ours", ours))]
    found: Found = probe_chat_template(against(*bundles), unheard)
    assert found.verdict == verdict
