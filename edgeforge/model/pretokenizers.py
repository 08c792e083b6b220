r"""How byte-level BPE vocabularies cut text into words before merging: one row per family, by the names GGUF files use.

The rows are those of llama.cpp (src/llama-vocab.cpp, `llm_tokenizer_bpe`), spelled as the families' own
tokenizer.json spells them where it is published. llama.cpp applies its expressions one after another and keeps what
lies between matches; so does a Sequence of isolated Splits.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeforge.model.tokenizer import Json

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_LINES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_LINES}"
_SEED = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _CASED % ("", "", r"\p{N}")
_GPT4O = _CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?", r"\p{N}{1,3}")
_CJK = r"[一-龥ࠀ-一가-퟿]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    r"""One family. `splits` are applied in order; `digits` cuts every digit apart first; GPT-2's own expression is
    the default of ByteLevel.

    `ignores_merges`: a word that is itself a token is taken whole. `adds_bos`: BOS goes in front unless the file says
    otherwise.
    """

    names: tuple[str, ...]
    splits: tuple[str, ...] = ()
    digits: bool = False
    gpt2_words: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False

    def to_json(self) -> "dict[str, Json]":
        """tokenizer.json's `pre_tokenizer`."""
        steps: list[Json] = [{"type": "Digits", "individual_digits": True}] if self.digits else []
        steps += [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
            for expression in self.splits
        ]
        byte_level: dict[str, Json] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": self.gpt2_words,
        }
        return {"type": "Sequence", "pretokenizers": [*steps, byte_level]} if steps else byte_level


PRE_TOKENIZERS = (
    PreTokenizer(
        names=("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"),
        splits=(_LLAMA3,),
        ignores_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(names=("smaug-bpe", "dbrx"), splits=(_LLAMA3,)),
    PreTokenizer(
        names=("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        digits=True,
        gpt2_words=True,
    ),
    PreTokenizer(
        names=("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "exaone4", "mellum"),
        gpt2_words=True,
    ),
    PreTokenizer(names=("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "solar-open"), splits=(_QWEN2,)),
    PreTokenizer(names=("seed-coder",), splits=(_SEED,)),
    PreTokenizer(names=("tekken",), splits=(_TEKKEN,), ignores_merges=True, adds_bos=True),
    PreTokenizer(names=("gpt-4o", "llama4"), splits=(_GPT4O,)),
    PreTokenizer(names=("falcon",), splits=(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    PreTokenizer(names=("deepseek-coder",), splits=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    PreTokenizer(names=("default",), splits=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
)
