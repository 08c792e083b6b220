"""What a model is called in the documents that travel with it, and what its licence is called elsewhere."""

import re
from collections.abc import Iterable

from edgeforge.bundle.licences import NO_LICENCE, llama_version
from edgeforge.runtime.manifest import SourceRecord

DEMO_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"

_SPDX = (
    ("Apache-2.0", r"(?is)apache license\s+version 2\.0"),
    ("MIT", r"(?is)permission is hereby granted, free of charge, to any person.*the software is provided \"as is\""),
)


def base_model(source: SourceRecord) -> str | None:
    """The hub id of the original; None for files of somebody's own."""
    return DEMO_BASE if source.kind == "demo" else source.name


def title_of(source: SourceRecord) -> str:
    """The model's name without its publisher's."""
    return (base_model(source) or "Local checkpoint").rpartition("/")[2]


def spdx_id(licence: str) -> str | None:
    """The SPDX id of a well-known licence text."""
    return next((name for name, pattern in _SPDX if re.search(pattern, licence)), None)


def hub_licence(source: SourceRecord, licence: str, texts: Iterable[str]) -> str | None:
    """The hub's id (hf.co/docs/hub/repositories-licenses), `other` for terms that have none; None without a licence."""
    llama = llama_version(source, texts)
    if llama is not None:
        return f"llama{llama}" if llama in ("2", "3", "3.1", "3.2", "3.3", "4") else "other"
    if licence == NO_LICENCE:
        return None
    found = spdx_id(licence)
    return found.lower() if found else "other"
