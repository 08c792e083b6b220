"""The vectors are what transformers, an independent reader of the same files, makes of the same texts and chats."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.model.parity import CHATS, NOW, TEXTS, make_parity, parity_text, talker_of
from edgeforge.model.tokenizer import TokenizerFiles, tokenizer_from_directory
from edgeforge.runtime.parity import differences, read_parity

DATED = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"


@pytest.fixture(scope="module", params=["demo", "llama3", "stories"])
def files(request: pytest.FixtureRequest) -> TokenizerFiles:
    if request.param == "demo":
        request.getfixturevalue("demo_gguf")
        return open_checkpoint("demo").tokenizer
    data: Path = request.getfixturevalue("test_data")
    return tokenizer_from_directory(data / ("tokenizers/llama3" if request.param == "llama3" else "models/stories260k"))


def test_transformers_makes_the_same_ids_text_and_prompts(
    files: TokenizerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    for name, content in files.files.items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    parity = make_parity(files)
    assert [vector.text for vector in parity.texts] == list(TEXTS)
    for vector in parity.texts:
        assert theirs(vector.text)["input_ids"] == list(vector.ids), vector.text
        decoded = theirs.decode(vector.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert decoded == vector.decoded
    assert len(parity.chats) == (len(CHATS) if files.chat_template else 0)
    for chat in parity.chats:
        prompt = theirs.apply_chat_template(
            list(chat.messages), add_generation_prompt=chat.add_generation_prompt, tokenize=False
        )
        assert prompt == chat.text
        assert theirs(prompt, add_special_tokens=False)["input_ids"] == list(chat.ids)


def test_a_template_that_writes_the_date_gets_the_fixed_one(files: TokenizerFiles) -> None:
    dated = TokenizerFiles(
        files=files.files, chat_template=DATED, bos_token=None, eos_token=None, add_bos=files.add_bos
    )
    first = make_parity(dated).chats[0]
    assert first.text == "26 Jul 2024[user]Hello"
    assert datetime(2024, 7, 26) < NOW < datetime(2024, 7, 27)


def test_the_file_reads_back_and_its_bytes_are_the_same_again(files: TokenizerFiles, tmp_path: Path) -> None:
    parity = make_parity(files)
    text = parity_text(parity)
    assert text == parity_text(make_parity(files))
    (tmp_path / "parity.json").write_bytes(text.encode())
    assert read_parity(tmp_path / "parity.json") == parity
    assert len(json.loads(text)["texts"]) == len(TEXTS)
    assert not list(differences(parity, talker_of(files)))


def test_a_chat_that_the_template_refuses_is_a_vector_too(files: TokenizerFiles) -> None:
    refusing = TokenizerFiles(
        files=files.files, chat_template=REFUSING, bos_token=None, eos_token=None, add_bos=files.add_bos
    )
    parity = make_parity(refusing)
    refused = [chat for chat in parity.chats if chat.text is None]
    assert len(refused) == sum(messages[0]["role"] == "system" for messages, _ in CHATS)
    assert all(chat.ids == () for chat in refused)
    other = talker_of(TokenizerFiles(**{**_fields(refusing), "chat_template": "{{ messages[0].content }}"}))
    assert "where the original refuses it" in next(iter(differences(parity, other)))


def _fields(files: TokenizerFiles) -> dict:
    return {name: getattr(files, name) for name in ("files", "chat_template", "bos_token", "eos_token", "add_bos")}
