"""Copies of bundles with something wrong in them, sealed again; and models that say what they must."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends.onnx.layout import Slot, weight_layout
from edgeforge.bundle import seal
from edgeforge.planning import BuildPlan
from edgeforge.runtime.integrity import sha256_of
from edgeforge.validation.probes.common import Subject

ITEM = {"f32": np.float32, "f16": np.float16}


@dataclass(frozen=True)
class Limits:
    max_mean_kl_divergence: float = 0.1
    max_perplexity_ratio: float = 1.1
    max_accuracy_loss: float = 0.03
    confidence: float = 0.95


def changed(bundle: Path, folder: Path, edit: Callable[[Path], None]) -> Path:
    """A copy in `folder` after `edit`, with its new hashes."""
    copy = shutil.copytree(bundle, folder)
    edit(copy)
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, record in manifest["files"].items():
        record |= {"sha256": sha256_of(copy / name), "size": (copy / name).stat().st_size}
    path.write_text(json.dumps(manifest))
    seal(copy)
    return copy


def stored(bundle: Path, slot: Slot) -> NDArray[np.generic]:
    """An array of the bundle's data file, which writing changes."""
    path = bundle / "model" / "model.onnx.data"
    return np.memmap(path, ITEM[slot.dtype], "r+", offset=slot.offset, shape=slot.shape)


def short_rotary(plan: BuildPlan, stop: int) -> Callable[[Path], None]:
    """Rotary tables that were filled up to position `stop` and hold zeros from there on."""

    def edit(bundle: Path) -> None:
        layout = weight_layout(plan)
        for slot in (layout.cos, layout.sin):
            stored(bundle, slot)[stop:] = 0

    return edit


def noisy(plan: BuildPlan, matrix: str, scale: float) -> Callable[[Path], None]:
    """Noise of `scale` times a float matrix's own spread."""

    def edit(bundle: Path) -> None:
        slot = weight_layout(plan).matrices[matrix].weight
        weights = stored(bundle, slot)
        noise = np.random.default_rng(0).standard_normal(slot.shape).astype(weights.dtype)
        weights += scale * weights.std() * noise

    return edit


@dataclass
class Says:
    """A model without a chat template that writes what it is told to, a token a letter."""

    text: Callable[[str], str]
    context_length: int = 4096
    chat_template: str | None = None

    def generate(self, prompt: str, *, max_new_tokens: int, **_: object) -> Iterator[SimpleNamespace]:
        for letter in self.text(prompt)[:max_new_tokens]:
            yield SimpleNamespace(text=letter, token_ids=(ord(letter),))


def subject(reference: object, candidate: object, **more: object) -> Subject:
    """A subject of what a test gives, and nothing else."""
    given = {"bundle": Path(), "checkpoint": None, "limits": Limits(), **more}
    return Subject(reference=reference, candidate=candidate, **given)  # type: ignore[arg-type]


def unheard(share: float) -> None:
    """Nobody watches."""
