"""tokenizer.json rebuilt from the vocabulary inside a GGUF file.

Two kinds of vocabulary exist in Llama files. `gpt2`: byte-level BPE with its merges and the name of a pre-tokenizer
(`pre`), as Llama 3 and SmolLM have. `llama`: a SentencePiece BPE whose scores stand for the order of merges, with
byte tokens for whatever it does not know, as Llama 2 has. What llama.cpp does with each (src/llama-vocab.cpp) is what
the rebuilt file does; the tests compare ids.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from edgeforge.errors import UnusableInput
from edgeforge.model.gguf_architecture import integer, special_id, text
from edgeforge.model.gguf_header import Metadata
from edgeforge.model.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from edgeforge.model.tokenizer import CONFIG, TEMPLATE, TOKENIZER, Json, TokenizerFiles, bos_template, dump_json

# llama.cpp's token types (include/llama.h, `llama_token_type`).
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE = "\u2581"  # SentencePiece's visible space
_ELSEWHERE = "use the model's Hugging Face directory, which carries tokenizer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vocabulary:
    """V tokens by id; `scores` is empty where the file has none."""

    tokens: Sequence[str]
    kinds: Sequence[int]
    scores: Sequence[float]

    def text_of(self, number: int | None) -> str | None:
        return self.tokens[number] if number is not None and number < len(self.tokens) else None


def tokenizer_from_gguf(metadata: Metadata) -> TokenizerFiles:
    """The files every consumer loads, from `tokenizer.ggml.*`; raises UnusableInput that names the kind it cannot
    rebuild.
    """
    vocabulary = _vocabulary(metadata)
    kind = text(metadata, "tokenizer.ggml.model", "")
    if kind == "gpt2":
        pre = _pre_tokenizer(text(metadata, "tokenizer.ggml.pre", "default"))
        body, add_bos = _byte_level(vocabulary, _merges(metadata, vocabulary), pre), pre.adds_bos
    elif kind == "llama":
        body, add_bos = (
            _sentencepiece(vocabulary, prefix=metadata.get("tokenizer.ggml.add_space_prefix") is not False),
            True,
        )
    else:
        raise UnusableInput(
            f"the GGUF file's tokenizer is of the kind {kind or 'none'!r};"
            " EdgeForge rebuilds 'gpt2' (byte-level BPE) and 'llama' (SentencePiece)",
            hint=_ELSEWHERE,
        )
    bos_id = special_id(metadata, "bos")
    bos = vocabulary.text_of(bos_id)
    add_bos = bos is not None and metadata.get("tokenizer.ggml.add_bos_token", add_bos) is True
    if add_bos and bos is not None and bos_id is not None:
        body["post_processor"] = bos_template(bos, bos_id)
    template = text(metadata, "tokenizer.chat_template", "") or None
    files = {
        TOKENIZER: json.dumps(body, ensure_ascii=False).encode(),
        CONFIG: dump_json(_config(metadata, vocabulary, add_bos, template)),
    }
    if template is not None:
        files[TEMPLATE] = template.encode()
    eos = vocabulary.text_of(special_id(metadata, "eos"))
    return TokenizerFiles(files=files, chat_template=template, bos_token=bos, eos_token=eos, add_bos=add_bos)


def _vocabulary(metadata: Metadata) -> _Vocabulary:
    found = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(found, list) or not found:
        raise UnusableInput(
            "the GGUF file holds no vocabulary (tokenizer.ggml.tokens)",
            hint=_ELSEWHERE,
        )
    # llama.cpp names an empty token by its id; a second token of the same text is never produced, but its id must
    # stay taken.
    tokens = [str(token) or f"[EMPTY_{number}]" for number, token in enumerate(found)]
    seen: set[str] = set()
    for number, token in enumerate(tokens):
        if token in seen:
            tokens[number] = f"[DUPLICATE_{number}]"
        seen.add(tokens[number])
    kinds = metadata.get("tokenizer.ggml.token_type")
    scores = metadata.get("tokenizer.ggml.scores")
    vocabulary = _Vocabulary(
        tokens=tokens,
        kinds=[int(kind) for kind in kinds] if isinstance(kinds, list) else [_NORMAL] * len(tokens),
        scores=[float(score) for score in scores] if isinstance(scores, list) else [],
    )
    if len(vocabulary.kinds) != len(tokens) or len(vocabulary.scores) not in (0, len(tokens)):
        raise UnusableInput(
            f"the GGUF file is damaged: it has {len(tokens)} tokens, {len(vocabulary.kinds)} token types"
            f" and {len(vocabulary.scores)} scores"
        )
    return vocabulary


def _pre_tokenizer(name: str) -> PreTokenizer:
    for pre in PRE_TOKENIZERS:
        if name in pre.names:
            return pre
    raise UnusableInput(
        f"the GGUF file's pre-tokenizer (tokenizer.ggml.pre) is {name!r}, which EdgeForge does not know",
        hint=_ELSEWHERE,
    )


def _merges(metadata: Metadata, vocabulary: _Vocabulary) -> list[Json]:
    """`a b` lines in order of priority, each checked: the tokenizers library would refuse the whole file for one bad
    line.
    """
    lines = metadata.get("tokenizer.ggml.merges")
    if not isinstance(lines, list):
        raise UnusableInput("the GGUF file holds no merges (tokenizer.ggml.merges), which byte-level BPE needs")
    known = set(vocabulary.tokens)
    merges: list[Json] = []
    for line in map(str, lines):
        left, _, right = line[:1], "", line[1:]
        head, _, right = right.partition(" ")  # a token may start with a space, so the first character never separates
        left += head
        if left not in known or right not in known or left + right not in known:
            raise UnusableInput(
                f"the GGUF file is damaged: its merge {line!r} names a token that is not in the vocabulary"
            )
        merges.append(line if " " not in left + right else [left, right])
    return merges if all(isinstance(merge, str) for merge in merges) else [_pair(merge) for merge in merges]


def _pair(merge: Json) -> Json:
    return list(merge.split(" ")) if isinstance(merge, str) else merge


def _byte_level(vocabulary: _Vocabulary, merges: list[Json], pre: PreTokenizer) -> dict[str, Json]:
    decoder: Json = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    model = _bpe(vocabulary, merges, unknown=None, byte_fallback=False, ignore_merges=pre.ignores_merges)
    return _tokenizer_json(vocabulary, normalizer=None, pre_tokenizer=pre.to_json(), decoder=decoder, model=model)


def _sentencepiece(vocabulary: _Vocabulary, *, prefix: bool) -> dict[str, Json]:
    """As transformers' converter writes Llama 2's (convert_slow_tokenizer.py, `LlamaConverter`), from tokens and
    scores alone.
    """
    spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    visible: Json = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    normalizers: list[Json] = [{"type": "Prepend", "prepend": _SPACE}, spaces] if prefix else [spaces]
    strip: list[Json] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoders: list[Json] = [visible, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    unknown = next(
        (token for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == _UNKNOWN), None
    )
    return _tokenizer_json(
        vocabulary,
        normalizer={"type": "Sequence", "normalizers": normalizers},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        model=_bpe(
            vocabulary, _merges_from_scores(vocabulary), unknown=unknown, byte_fallback=True, ignore_merges=False
        ),
    )


def _merges_from_scores(vocabulary: _Vocabulary) -> list[Json]:
    """SentencePiece joins the two neighbours whose union scores highest; as merges: every split of every piece, best
    piece first.

    Equal scores keep the order transformers gives them: shorter left part first, then shorter right part.
    """
    if not vocabulary.scores:
        raise UnusableInput("the GGUF file's SentencePiece vocabulary has no scores (tokenizer.ggml.scores)")
    ids = {
        token: i
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind == _NORMAL
    }
    splits: list[tuple[float, int, int, str, str]] = []
    for piece, number in ids.items():
        parts = [(piece[:at], piece[at:]) for at in range(1, len(piece)) if piece[:at] in ids and piece[at:] in ids]
        for left, right in sorted(parts, key=lambda part: (ids[part[0]], ids[part[1]])):
            splits.append((-vocabulary.scores[number], len(left), len(right), left, right))
    splits.sort(key=lambda split: split[:3])
    return [[left, right] for *_, left, right in splits]


def _bpe(
    vocabulary: _Vocabulary, merges: list[Json], *, unknown: str | None, byte_fallback: bool, ignore_merges: bool
) -> dict[str, Json]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": {token: number for number, token in enumerate(vocabulary.tokens)},
        "merges": merges,
    }


def _tokenizer_json(
    vocabulary: _Vocabulary, *, normalizer: Json, pre_tokenizer: Json, decoder: Json, model: dict[str, Json]
) -> dict[str, Json]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, **token} for number, token in _added(vocabulary)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _added(vocabulary: _Vocabulary) -> list[tuple[int, dict[str, Json]]]:
    """The tokens matched in the text before anything else: special ones, and those the model's author defined."""
    return [
        (
            number,
            {
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != _USER_DEFINED,
            },
        )
        for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _config(metadata: Metadata, vocabulary: _Vocabulary, add_bos: bool, template: str | None) -> dict[str, Json]:
    """tokenizer_config.json for transformers and onnxruntime-genai."""
    config: dict[str, Json] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": integer(metadata, "llama.context_length", least=1, default=2**31 - 1),
        "added_tokens_decoder": {str(number): dict(token) for number, token in _added(vocabulary)},
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = vocabulary.text_of(special_id(metadata, key))
        if token is not None:
            config[f"{name}_token"] = token
    if template is not None:
        config["chat_template"] = template
    return config
