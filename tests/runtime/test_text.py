"""Streamed pieces joined are the text, a character is never split, and no stop string is ever shown in part."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import SPECIAL, byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from edgeforge.runtime.text import Detokenizer, StopFilter

TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(st.sampled_from("aé 中文字符🙂👩‍👩‍👧‍👦🇫🇷한글\n\t▁�𝕏"), max_size=40),
)


def trained_bpe() -> Tokenizer:
    """Byte-level BPE with merges inside and across characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["中文字符和汉字 🙂🙃🚀 한글 hello the cat", "中文 🙂🙂 été déjà vu 字字字"] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """The decoder of Llama 2's tokenizer: byte fallback, and a leading space that is dropped."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdé中", "▁a", "ab"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


TOKENIZERS = {"bytes": byte_tokenizer(), "bpe": trained_bpe(), "sentencepiece": sentencepiece_like()}


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    detokenizer = Detokenizer(lambda window: decode(tokenizer, window), special)
    return [*(detokenizer.push(id) for id in ids), detokenizer.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_pieces_joined_are_the_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text).ids
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_ids_at_all_join_to_what_decoding_them_gives(name: str, data: st.DataObject) -> None:
    """Broken characters and special tokens included."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=50))
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(text=st.text(st.sampled_from("aé 中文🙂👩‍👧"), max_size=30))
def test_no_piece_holds_half_a_character(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert not any("\ufffd" in piece for piece in pieces(tokenizer, tokenizer.encode(text).ids))


def test_text_is_not_held_back_longer_than_a_character() -> None:
    tokenizer = TOKENIZERS["bytes"]
    shown = pieces(tokenizer, tokenizer.encode("a🙂b").ids)
    assert shown == ["a", "", "", "", "🙂", "b", ""]


def test_a_space_after_a_special_token_is_kept_as_decoding_keeps_it() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    a, end = tokenizer.token_to_id("▁a"), tokenizer.token_to_id("</s>")
    assert pieces(tokenizer, [a, end, a]) == ["a", "", " a", ""]


def test_real_tokenizers(test_data: Path) -> None:
    sample = "Once upon a time… 中文字符 🙂👩‍👩‍👧‍👦 naïve\n\n  def f(x):\treturn x\r\n 한국어 العربية 🇫🇷 ��"
    for path in (test_data / "models/stories260k/tokenizer.json", test_data / "tokenizers/llama3/tokenizer.json"):
        tokenizer = Tokenizer.from_file(str(path))
        ids = tokenizer.encode(sample).ids
        assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids), path


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_stories_tokenizer_joins(text: str, stories: Path) -> None:
    tokenizer = _stories(stories)
    ids = tokenizer.encode(text).ids
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


_CACHE: dict[Path, Tokenizer] = {}


def _stories(stories: Path) -> Tokenizer:
    return _CACHE.setdefault(stories, Tokenizer.from_file(str(stories / "tokenizer.json")))


# --- stop strings


def filtered(chunks: Sequence[str], stop: Sequence[str]) -> list[str]:
    stops = StopFilter(stop)
    shown = [stops.push(chunk) for chunk in chunks]
    return [*shown, "" if stops.stopped else stops.flush()]


SMALL = st.text(st.sampled_from("ab<"), max_size=3)


@settings(max_examples=500)
@given(st.lists(SMALL, max_size=12), st.lists(SMALL, max_size=3))
def test_what_is_shown_is_the_text_up_to_the_first_stop_string(chunks: list[str], stop: list[str]) -> None:
    text = "".join(chunks)
    found = [at for string in stop if string and (at := text.find(string)) >= 0]
    # of overlapping stop strings the one that is complete first decides
    ends = [at + len(string) for string in stop if string and (at := text.find(string)) >= 0]
    shown = "".join(filtered(chunks, stop))
    assert text.startswith(shown)
    if not found:
        assert shown == text
    else:
        assert not any(string in shown for string in stop if string)
        assert min(found) <= len(shown) <= min(ends)


@settings(max_examples=300)
@given(st.lists(SMALL, max_size=12), st.lists(SMALL, min_size=1, max_size=3))
def test_no_more_is_held_back_than_could_start_a_stop_string(chunks: list[str], stop: list[str]) -> None:
    stops = StopFilter(stop)
    text = shown = ""
    for chunk in chunks:
        text += chunk
        shown += stops.push(chunk)
        held = text[len(shown) :]
        if not stops.stopped:
            assert held == "" or any(string.startswith(held) and string != held for string in stop)


def test_text_that_cannot_start_a_stop_string_passes_at_once() -> None:
    shown = filtered(["Hello", " wor", "<", "b", "<|e", "nd|>tail"], ["<|end|>"])
    assert shown == ["Hello", " wor", "", "<b", "", "", ""]


def test_sample_of_json_roundtrip_is_untouched_without_stop_strings() -> None:
    text = json.dumps({"a": [1, 2, "é"]}, ensure_ascii=False)
    assert filtered(list(text), []) == [*text, ""]
