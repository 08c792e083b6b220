"""Every consumer gets the same ids: a rebuilt vocabulary equals the published one, and BOS is settled once."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import gguf
import pytest

from edgeforge.errors import UnusableInput
from edgeforge.model.gguf_header import Metadata, read_header
from edgeforge.model.pretokenizers import PRE_TOKENIZERS
from edgeforge.model.tokenizer import TokenizerFiles, tokenizer_from_directory
from edgeforge.model.tokenizer_gguf import tokenizer_from_gguf

TEXTS = (
    "",
    " ",
    "Hello world",
    "  two  spaces,\ttabs\t\tand\n\n\nlines \r\n ",
    "1234567890 12 3.14159 1,000,000 in 2024; 07/04/1776, 21st  42nd",
    "It's we'LL don't CAN'T ‘quoted’ they're",
    "Привет, мир! 你好，世界！こんにちは 한국어 مرحبا שלום हिन्दी ไทย",
    "🚀 😶‍🌫️ 👩‍👩‍👧‍👦 ½ ²³ é",
    'def f(x):\n    return x**2  # ok\n\tif (a != b) { c[0] = "q"; }',
    "<s> hi </s> <unk> <|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi",
    "XMLHttpRequest snake_case a" + "a" * 30 + "!!!???...===",
)
# llama-tokenize (llama-cpp-python 0.3.36) on the demo's own file.
DEMO_IDS = {
    "The year 2024,  07/04/1776; 3rd\t\tx\n\n\n  end  ": (
        "504 713 216 34 32 34 36 28 256 32 39 31 32 36 31 33 39 39 38 43 216 35 7212 197 197 104 1116 3805 1112 256"
    ),
    "Привет, мир! 你好，世界 مرحبا": (
        "155 249 46879 16464 32547 28 41337 7872 9175 17 216 18645 250 48392 138 12831 7906 240 178 239 230 36395"
        " 20602 44626 31462 10805"
    ),
    "<|im_start|>user\nWhat's the capital of France?<|im_end|>\n": "1 4093 198 1780 506 260 3575 282 4649 47 2 198",
    "🚀 ½ é": "10813 244 218 216 16738 26411",
    "\x04a\x06": "81",  # bytes the vocabulary lacks vanish, there as here
}


def vocabulary_file(path: Path, published: Mapping[str, object], kind: str, scores: list[float] | None = None) -> Path:
    """A GGUF file with the vocabulary of a tokenizer.json and nothing else, as llama.cpp's converter writes it."""
    model, added = published["model"], published["added_tokens"]
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    tokens = sorted(ids, key=ids.__getitem__)
    special = {token["content"] for token in added}
    types = [3 if token in special else 6 if token.startswith("<0x") and kind == "llama" else 1 for token in tokens]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    if kind == "llama":
        types[0] = 2
        writer.add_token_scores(scores)
    else:
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_merges(model["merges"])
        writer.add_bos_token_id(ids["<|begin_of_text|>"])
        writer.add_eos_token_id(ids["<|eot_id|>"])
        writer.add_chat_template("{{ messages[0]['content'] }}")
    writer.add_token_types(types)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama3(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenizerFiles, Metadata]:
    """(the published files, the metadata of a GGUF file made from them)."""
    folder = test_data / "tokenizers" / "llama3"
    published = json.loads((folder / "tokenizer.json").read_text())
    path = vocabulary_file(tmp_path_factory.mktemp("llama3") / "vocabulary.gguf", published, "gpt2")
    return tokenizer_from_directory(folder), read_header(path).metadata


def test_a_byte_level_vocabulary_rebuilt_from_gguf_gives_the_published_ids(
    llama3: tuple[TokenizerFiles, Metadata],
) -> None:
    published, metadata = llama3
    rebuilt = tokenizer_from_gguf(metadata)
    ours, theirs = rebuilt.load(), published.load()
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text).ids, text
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)
    assert (rebuilt.bos_token, rebuilt.eos_token, rebuilt.add_bos) == ("<|begin_of_text|>", "<|eot_id|>", True)
    assert (published.bos_token, published.eos_token, published.add_bos) == ("<|begin_of_text|>", "<|eot_id|>", True)


def test_every_pre_tokenizer_cuts_as_llama_cpp_does(llama3: tuple[TokenizerFiles, Metadata]) -> None:
    golden = json.loads(Path(__file__).with_name("pre_tokenizer_ids.json").read_text())
    _, metadata = llama3
    assert {name for name in golden["ids"] if not any(name in pre.names for pre in PRE_TOKENIZERS)} == set()
    assert all(set(pre.names) & set(golden["ids"]) for pre in PRE_TOKENIZERS), "a family without a golden row"
    for name, ids in golden["ids"].items():
        files = tokenizer_from_gguf({**metadata, "tokenizer.ggml.pre": name})
        assert files.load().encode(golden["text"], add_special_tokens=False).ids == ids, name


def test_a_sentencepiece_vocabulary_rebuilt_from_gguf_gives_the_published_ids(stories: Path, tmp_path: Path) -> None:
    published = json.loads((stories / "tokenizer.json").read_text())
    # SentencePiece's scores of a BPE vocabulary are the order of its merges, negated: ids from 259 on, best first.
    scores = [0.0] * 259 + [-float(i) for i in range(len(published["model"]["vocab"]) - 259)]
    path = vocabulary_file(tmp_path / "vocabulary.gguf", published, "llama", scores)
    rebuilt, original = tokenizer_from_gguf(read_header(path).metadata), tokenizer_from_directory(stories)
    ours, theirs = rebuilt.load(), original.load()
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text).ids, text
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)
    assert (rebuilt.bos_token, rebuilt.eos_token, rebuilt.add_bos) == ("<s>", "</s>", True)
    assert original.add_bos


def test_the_demos_tokens_are_those_of_llama_cpp(demo_gguf: Path) -> None:
    files = tokenizer_from_gguf(read_header(demo_gguf).metadata)
    tokenizer = files.load()
    for text, ids in DEMO_IDS.items():
        assert " ".join(map(str, tokenizer.encode(text).ids)) == ids, text
    assert (files.bos_token, files.eos_token, files.add_bos) == ("<|im_start|>", "<|im_end|>", False)
    assert files.chat_template is not None
    assert files.files["chat_template.jinja"].decode() == files.chat_template


def test_transformers_loads_the_rebuilt_files_and_agrees(demo_gguf: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    files = tokenizer_from_gguf(read_header(demo_gguf).metadata)
    for name, content in files.files.items():
        (tmp_path / name).write_bytes(content)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), files.load()
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours.encode(text).ids
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert theirs.model_max_length == 8192
    prompt = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    reread = tokenizer_from_directory(tmp_path)
    assert reread == files


MINIMAL: dict[str, object] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0],
}


@pytest.mark.parametrize(
    ("metadata", "ids"),
    [
        ({}, [1, 7]),
        ({"tokenizer.ggml.add_bos_token": False}, [7]),
        ({"tokenizer.ggml.add_space_prefix": False}, [1, 6]),
    ],
)
def test_bos_and_the_space_in_front_follow_the_file(metadata: dict[str, bool], ids: list[int]) -> None:
    files = tokenizer_from_gguf({**MINIMAL, **metadata})
    assert files.load().encode("ab").ids == ids
    assert files.load().decode(ids) == "ab"
    assert files.add_bos == (ids[0] == 1)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "'t5'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "martian"}, "'martian'"),
        ({"tokenizer.ggml.model": "gpt2"}, "no merges"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a c"]}, "merge 'a c'"),
        ({"tokenizer.ggml.scores": []}, "no scores"),
        ({"tokenizer.ggml.token_type": [1]}, "1 token types"),
        ({"tokenizer.ggml.tokens": []}, "no vocabulary"),
    ],
)
def test_a_vocabulary_that_cannot_be_rebuilt_is_refused_by_name(metadata: dict[str, object], message: str) -> None:
    with pytest.raises(UnusableInput, match=message):
        tokenizer_from_gguf({**MINIMAL, **metadata})


def test_tokens_without_a_text_of_their_own_keep_their_ids() -> None:
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "", "a", "▁a"]
    tokenizer = tokenizer_from_gguf({**MINIMAL, "tokenizer.ggml.tokens": tokens}).load()
    assert tokenizer.get_vocab_size() == len(tokens)
    assert tokenizer.encode("a").ids == [1, 7]


@pytest.fixture
def copy(stories: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stories / name, tmp_path / name)
    return tmp_path


def configure(folder: Path, **fields: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_directorys_files_are_passed_on_as_they_are(copy: Path, stories: Path) -> None:
    files = tokenizer_from_directory(copy)
    assert files.files == {name: (stories / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    assert files.chat_template is None


@pytest.mark.parametrize("class_name", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_bos_is_what_transformers_does(copy: Path, class_name: str) -> None:
    transformers = pytest.importorskip("transformers")
    published = json.loads((copy / "tokenizer.json").read_text())
    for wanted, inside in ((True, False), (False, True), (True, True)):
        post_processor = published["post_processor"] if inside else None
        (copy / "tokenizer.json").write_text(json.dumps({**published, "post_processor": post_processor}))
        configure(copy, tokenizer_class=class_name, add_bos_token=wanted, legacy=True)
        files = tokenizer_from_directory(copy)
        theirs = transformers.AutoTokenizer.from_pretrained(copy)("Once upon a time")["input_ids"]
        assert files.load().encode("Once upon a time").ids == theirs
        assert files.add_bos == (theirs[0] == 1)


def test_the_chat_template_is_found_wherever_it_is_written(copy: Path) -> None:
    configure(copy, chat_template="inline")
    assert tokenizer_from_directory(copy).chat_template == "inline"
    configure(copy, chat_template=[{"name": "rag", "template": "r"}, {"name": "default", "template": "named"}])
    files = tokenizer_from_directory(copy)
    assert files.chat_template == "named"
    assert json.loads(files.files["tokenizer_config.json"])["chat_template"] == "named"
    (copy / "chat_template.jinja").write_text("file")
    files = tokenizer_from_directory(copy)
    assert files.chat_template == "file"
    assert json.loads(files.files["tokenizer_config.json"])["chat_template"] == "file"
    assert files.files["chat_template.jinja"] == b"file"


def test_special_tokens_may_be_objects_or_in_their_own_file(copy: Path) -> None:
    configure(copy, bos_token={"content": "<s>", "lstrip": False}, eos_token=None)
    (copy / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    files = tokenizer_from_directory(copy)
    assert (files.bos_token, files.eos_token) == ("<s>", "</s>")
    assert json.loads(files.files["tokenizer_config.json"])["eos_token"] == "</s>"


def test_a_directory_without_tokenizer_json_says_how_to_get_one(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UnusableInput, match=r"has no tokenizer\.json$"):
        tokenizer_from_directory(copy)
    (copy / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UnusableInput, match=r"only tokenizer\.model") as raised:
        tokenizer_from_directory(copy)
    assert "save_pretrained" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"version": "1.0"}'),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer_config.json", b"["),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"\xff"),
    ],
)
def test_a_damaged_file_is_one_sentence_that_names_it(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(UnusableInput, match=name):
        tokenizer_from_directory(copy)
