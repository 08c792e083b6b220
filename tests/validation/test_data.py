"""Text in, tokens out: what is read, in which order, and what is refused."""

import gzip
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edgeforge.errors import UnusableInput
from edgeforge.validation.data import concatenate, default_texts, encode_plain, load_texts


def test_the_built_in_text_is_enough_for_eight_chunks_of_llama_3(test_data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(test_data / "tokenizers" / "llama3" / "tokenizer.json"))
    text = concatenate(default_texts())
    assert len(encode_plain(tokenizer, text)) >= 8 * 512
    assert 3000 < len(text.split()) < 5000


def test_a_folder_is_read_by_name_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "c.raw.gz").write_bytes(gzip.compress(b"three"))
    (tmp_path / "a.raw").write_text("one")
    (tmp_path / "d.json").write_text("{}")
    (tmp_path / "e.txt").mkdir()
    assert load_texts(tmp_path) == ("one", "two\n", "three")
    assert load_texts(tmp_path / "c.raw.gz") == ("three",)


def test_parts_start_on_their_own_line_and_the_last_line_break_goes() -> None:
    assert concatenate(["one", "two\n", "three\n\n"]) == "one\ntwo\nthree\n"
    assert concatenate(["only\n"]) == "only"
    assert concatenate(["only"]) == "only"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("latin.txt", "caf\xe9".encode("latin-1"), "not UTF-8"),
        ("cut.txt.gz", gzip.compress(b"text" * 1000, mtime=0)[:40], "not a whole gzip"),
        ("plain.txt.gz", b"not compressed", "not a whole gzip"),
        ("blank.txt", b" \n\n", "empty"),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_name(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnusableInput, match=says) as caught:
        load_texts(tmp_path / name)
    assert name in caught.value.message
    assert caught.value.hint


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="no text files"):
        load_texts(tmp_path)
    with pytest.raises(UnusableInput, match="no text at"):
        load_texts(tmp_path / "absent")


def test_special_tokens_spelled_in_a_text_stay_text(test_data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(test_data / "tokenizers" / "llama3" / "tokenizer.json"))
    end = tokenizer.token_to_id("<|end_of_text|>")
    assert end in tokenizer.encode("a <|end_of_text|> b").ids
    ids = encode_plain(tokenizer, "a <|end_of_text|> b")
    assert end not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a <|end_of_text|> b"


def test_truncation_set_in_the_file_is_undone(test_data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(test_data / "models" / "stories260k" / "tokenizer.json"))
    whole = encode_plain(tokenizer, "Once upon a time there was a little girl.")
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=100)
    assert encode_plain(tokenizer, "Once upon a time there was a little girl.") == whole
