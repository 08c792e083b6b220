"""LICENSE and NOTICE: what a redistributor of the bundle must pass on."""

import re
from collections.abc import Iterable, Mapping

from edgeforge.runtime.manifest import ModelRecord, SourceRecord

NO_LICENCE = """\
The checkpoint that this bundle was made from came without a licence file.

The weights, tokenizer and templates under model/ stay under the terms that their authors set: look there before
you pass the bundle on. The code under runtime/ and __main__.py is licensed under the Apache License 2.0, see
runtime/LICENSE.
"""
BUILT_WITH_LLAMA = "Built with Llama"
DEMO = "SmolLM2-135M-Instruct (EdgeForge's demo model)"

_AGREEMENT = re.compile(r"(?i)llama (\d(?:\.\d)?) community license agreement")
# Meta's own names and those of fine-tunes, which their licence wants to begin with Llama; not TinyLlama or open_llama.
_NAME = re.compile(r"(?i)(?:^|[/-])llama-?(\d(?:\.\d)?)(?![.\d])")


def licence_files(source: SourceRecord, notices: Mapping[str, bytes], *, version: str) -> dict[str, bytes]:
    """Path in the bundle -> content. LICENSE is the model's own, or says that there was none; NOTICE says what was
    changed; whatever else came with the model (acceptable use policies...) goes under licenses/.
    """
    licence = _licence_name(notices)
    own_notices = {name: text for name, text in notices.items() if name.upper().startswith("NOTICE")}
    files = {"LICENSE": NO_LICENCE.encode() if licence is None else notices[licence]}
    parts = [_origin(source, version=version, has_licence=licence is not None), *_llama(source, notices)]
    parts += [text.decode("utf-8", errors="replace").strip() for _, text in sorted(own_notices.items())]
    files["NOTICE"] = ("\n\n".join(parts) + "\n").encode()
    for name, text in sorted(notices.items()):
        if name != licence and name not in own_notices:
            files[f"licenses/{_plain(name)}"] = text
    return files


def llama_version(source: SourceRecord, texts: Iterable[str]) -> str | None:
    """Of which Llama the model is or is made, by the licence among `texts` or by its name: `3.1`; None for others.

    A model of Meta's whose name tells no version gives an empty string.
    """
    agreement = _AGREEMENT.search("\n".join(texts))
    if agreement:
        return agreement.group(1)
    name = source.name or ""
    named = _NAME.search(name)
    if named:
        return named.group(1)
    return "" if name.lower().startswith("meta-llama/") else None


def has_agreement(texts: Iterable[str]) -> bool:
    """Whether Meta's community licence itself is among the texts."""
    return any(_AGREEMENT.search(text) for text in texts)


def has_llamas_vocabulary(model: ModelRecord) -> bool:
    """Whether the tokenizer is that of Llama 3 and later, by its size and first token."""
    return (model.bos_token, model.vocab_size >= 128_000) == ("<|begin_of_text|>", True)


def attribution(version: str) -> str:
    """The sentence that Meta's community licences ask for in a NOTICE file."""
    llama = f"Llama {version}".rstrip()
    return (
        f"{llama} is licensed under the {llama} Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved."
    )


def _licence_name(notices: Mapping[str, bytes]) -> str | None:
    """The main licence among the files: the shortest name that says so."""
    names = [name for name in notices if re.match(r"(?i)licen[cs]e|copying", name)]
    return min(names, key=lambda name: (len(name), name), default=None)


def _origin(source: SourceRecord, *, version: str, has_licence: bool) -> str:
    name = DEMO if source.kind == "demo" else source.name or "a local checkpoint"
    at = f" at revision {source.revision}" if source.revision else ""
    terms = (
        "under the terms in LICENSE" if has_licence else "under their authors' terms (they came without a licence file)"
    )
    return (
        f"This bundle was made by EdgeForge {version} from {name}{at} ({source.fingerprint}).\n\n"
        f"The files under model/ were changed: the weights were converted, and quantized as manifest.json says.\n"
        f"They are {terms}.\n"
        "The files under runtime/ and __main__.py are part of EdgeForge, licensed under the Apache License 2.0, see\n"
        "runtime/LICENSE."
    )


def _llama(source: SourceRecord, notices: Mapping[str, bytes]) -> list[str]:
    """The attribution that Meta's community licences ask of whoever passes a Llama model on."""
    version = llama_version(source, [text.decode("utf-8", errors="replace") for text in notices.values()])
    return [] if version is None else [BUILT_WITH_LLAMA, attribution(version)]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "notice"
