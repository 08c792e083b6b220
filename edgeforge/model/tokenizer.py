"""The tokenizer as its files: tokenizer.json and tokenizer_config.json, which tokenizers, transformers and
onnxruntime-genai load.

A directory's files are passed on as their authors published them. Two things are settled here once, so that every
consumer agrees: whether encoding puts BOS in front, and which chat template is the model's.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgeforge.errors import UnusableInput
from edgeforge.model import fields
from edgeforge.model.folder import Folder, LocalFolder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
_OTHERS = ("special_tokens_map.json", "added_tokens.json")
# transformers' LlamaTokenizerFast replaces tokenizer.json's post-processor by what these two fields say.
_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What a bundle ships to turn text into ids.

    `files` always has tokenizer.json and tokenizer_config.json, and chat_template.jinja where there is a template;
    `add_bos` says whether `load().encode(text)` starts with BOS.
    """

    files: Mapping[str, bytes]
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    add_bos: bool

    def load(self) -> "Tokenizer":
        """The tokenizers library's object; raises UnusableInput where it refuses the file."""
        return _load(self.files[TOKENIZER], "the checkpoint")


def tokenizer_from_directory(path: Path) -> TokenizerFiles:
    """The tokenizer files of a Hugging Face directory; raises UnusableInput with a cure where they are missing or
    damaged.
    """
    return tokenizer_from(LocalFolder(path))


def tokenizer_from(folder: Folder) -> TokenizerFiles:
    """The same wherever the directory lies."""
    if not folder.has(TOKENIZER):
        raise UnusableInput(
            f"{folder.name} has no {TOKENIZER}" + (", only tokenizer.model" if folder.has("tokenizer.model") else ""),
            hint="write it once with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    files = {name: folder.read(name) for name in (TOKENIZER, CONFIG, *_OTHERS) if folder.has(name)}
    config = _object(files.get(CONFIG, b"{}"), CONFIG, folder.name)
    special = _object(files.get("special_tokens_map.json", b"{}"), "special_tokens_map.json", folder.name)
    bos, eos = (_content(config.get(name) or special.get(name)) for name in ("bos_token", "eos_token"))
    template = _chat_template(folder, config)
    tokenizer = _load(files[TOKENIZER], folder.name)
    wanted = _bos_wanted_by_class(config)
    if wanted is not None and bos is not None and wanted != _adds_bos(tokenizer, bos):
        _set_bos(tokenizer, bos if wanted else None, folder.name)
        files[TOKENIZER] = tokenizer.to_str(pretty=False).encode()
    complete = _completed(config, bos=bos, eos=eos, template=template)
    if complete != config or CONFIG not in files:
        files[CONFIG] = dump_json(complete)
    if template is not None:
        files[TEMPLATE] = template.encode()
    return TokenizerFiles(
        files=files,
        chat_template=template,
        bos_token=bos,
        eos_token=eos,
        add_bos=bos is not None and _adds_bos(tokenizer, bos),
    )


def dump_json(value: Json) -> bytes:
    """tokenizer_config.json as EdgeForge writes it, for people to read."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def bos_template(bos: str, bos_id: int) -> dict[str, Json]:
    """tokenizer.json's post-processor that puts BOS before every sequence."""
    token: Json = {"SpecialToken": {"id": bos, "type_id": 0}}
    first: Json = {"Sequence": {"id": "A", "type_id": 0}}
    second: list[Json] = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, *second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _object(data: bytes, name: str, folder: str) -> dict[str, Json]:
    try:
        value: Json = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnusableInput(f"{folder}/{name} is not JSON: {error}", hint="download the file again") from None
    if not isinstance(value, dict):
        raise UnusableInput(f"{folder}/{name} holds a {type(value).__name__} where an object was expected")
    fields.check_text(data, value, f"{folder}/{name}")
    return value


def _content(token: Json) -> str | None:
    """A special token is spelled as its text or as an object around it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _chat_template(folder: Folder, config: Mapping[str, Json]) -> str | None:
    """chat_template.jinja goes before tokenizer_config.json's field, whose list form has named templates
    (transformers does the same).
    """
    if folder.has(TEMPLATE):
        return io.StringIO(_decoded(folder.read(TEMPLATE), TEMPLATE, folder.name), newline=None).read()
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {_text(item.get("name")): _text(item.get("template")) for item in template if isinstance(item, dict)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else None


def _decoded(data: bytes, name: str, folder: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UnusableInput(f"{folder}/{name} is not UTF-8: {error}", hint="download the file again") from None


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) else None


def _completed(
    config: Mapping[str, Json], *, bos: str | None, eos: str | None, template: str | None
) -> dict[str, Json]:
    """The config with what genai reads from it and nowhere else: a class, the special tokens, one chat template."""
    complete = dict(config)
    complete.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    for name, token in (("bos_token", bos), ("eos_token", eos)):
        if token is not None and complete.get(name) is None:
            complete[name] = token
    if template is not None:
        complete["chat_template"] = template
    return complete


def _bos_wanted_by_class(config: Mapping[str, Json]) -> bool | None:
    """What transformers' Llama classes will do whatever tokenizer.json says, or None for the other classes."""
    if config.get("tokenizer_class") not in _LLAMA_CLASSES:
        return None
    return config.get("add_bos_token", True) is True


def _adds_bos(tokenizer: "Tokenizer", bos: str) -> bool:
    with_special, without = (tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False))
    return bool(with_special[:1] == [tokenizer.token_to_id(bos)] and with_special[1 : 1 + len(without)] == without)


def _set_bos(tokenizer: "Tokenizer", bos: str | None, folder: str) -> None:
    from tokenizers.processors import TemplateProcessing

    if bos is None:
        tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
        return
    number = tokenizer.token_to_id(bos)
    try:
        tokenizer.post_processor = TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, number)]
        )
    except (ValueError, TypeError):
        raise UnusableInput(
            f"{folder}/{CONFIG} names the BOS token {bos!r:.80}, which {TOKENIZER} does not have",
            hint="download the files again",
        ) from None


def _load(data: bytes, owner: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises plain Exception for whatever it dislikes
        raise UnusableInput(
            f"{TOKENIZER} of {owner} cannot be loaded: {error}", hint="download the file again"
        ) from error
