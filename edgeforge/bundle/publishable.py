"""May this bundle be passed on? Its model's terms must travel with it, and a Llama asks for a little more.

Sources: Llama 3.1 Community License, 1.b (Redistribution and Use): a copy of the agreement, "Built with Llama" shown
prominently, the attribution in a NOTICE file. 2, 3, 3.2, 3.3 and 4 ask for the same or less.
"""

from pathlib import Path

from edgeforge.bundle.licences import (
    BUILT_WITH_LLAMA,
    NO_LICENCE,
    attribution,
    has_agreement,
    has_llamas_vocabulary,
    llama_version,
)
from edgeforge.bundle.seal import licence_texts
from edgeforge.errors import UnusableInput
from edgeforge.runtime.integrity import CARD_NAME
from edgeforge.runtime.manifest import Manifest, read_manifest


def check_publishable(bundle: Path, *, without_licence: bool = False) -> None:
    """UnusableInput (exit 3) that says what is missing. `without_licence`: the user answers for a model whose files
    came without terms; a Llama is refused all the same.
    """
    manifest = read_manifest(bundle)
    texts = licence_texts(bundle, manifest)
    version = llama_version(manifest.source, texts.values())
    if version is not None or (_has_none(texts) and has_llamas_vocabulary(manifest.model)):
        _check_llama(bundle, manifest, list(texts.values()), version or "")
    elif _has_none(texts) and not without_licence:
        raise UnusableInput(
            f"{bundle} has no licence for its model: the checkpoint came without one",
            hint="put the model's LICENSE beside its weights and build again",
        )
    _text(bundle, "NOTICE", "what was changed about the model")


def _has_none(texts: dict[str, str]) -> bool:
    return not texts or list(texts.values()) == [NO_LICENCE]


def _check_llama(bundle: Path, manifest: Manifest, texts: list[str], version: str) -> None:
    """What the community licence asks of whoever passes on a Llama or what was made of one."""
    name = manifest.source.name or "the model"
    if not has_agreement(texts):
        raise UnusableInput(
            f"{bundle} lacks Meta's licence: {name} is a Llama (by its name or vocabulary), and a copy of the Llama "
            "Community License must go with it",
            hint="put the LICENSE that came with the Llama beside the weights and build again",
        )
    notice = _text(bundle, "NOTICE", "the attribution that Meta's licence asks for")
    if attribution(version) not in notice:
        raise UnusableInput(
            f"the NOTICE of {bundle} lacks the attribution that Meta's licence asks for: {attribution(version)!r}",
            hint="build the bundle again",
        )
    if BUILT_WITH_LLAMA not in _text(bundle, CARD_NAME, f"{BUILT_WITH_LLAMA!r}"):
        raise UnusableInput(
            f"the {CARD_NAME} of {bundle} does not say {BUILT_WITH_LLAMA!r}, as Meta's licence asks",
            hint="build the bundle again, or validate it: both write the card",
        )


def _text(bundle: Path, name: str, what: str) -> str:
    try:
        return (bundle / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise UnusableInput(
            f"{bundle} has no {name}, which says {what}", hint="build the bundle again with this version of EdgeForge"
        ) from None
