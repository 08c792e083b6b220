"""A real bundle folder around files that are no ONNX graphs, and a stand-in for the runtime that answers for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeforge import runtime
from edgeforge.bundle import assemble
from edgeforge.hardware import load_target, profile_to_json, target_to_json
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.model.forward import forward
from edgeforge.planning import make_plan, plan_to_json
from edgeforge.runtime.manifest import (
    Determinism,
    GenerationRecord,
    ModelRecord,
    Requirements,
    SourceRecord,
)


def make_bundle(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    kind: str = "directory",
    name: str | None = None,
    fingerprint: str | None = None,
    context_length: int = 512,
) -> Path:
    """Everything of a bundle but graphs that compute."""
    bundle = folder / "bundle"
    (bundle / "model").mkdir(parents=True)
    (bundle / "model" / "tokenizer.json").write_bytes(checkpoint.tokenizer.files["tokenizer.json"])
    for graph in ("model.onnx", "scoring.onnx"):
        (bundle / "model" / graph).write_bytes(graph.encode())
    architecture = checkpoint.architecture
    target = load_target("cpu")
    assemble(
        bundle,
        target=target_to_json(target),
        profile=profile_to_json(target.profile),
        plan=plan_to_json(make_plan(architecture, target)),
        source=SourceRecord(
            kind=kind,
            name=name,
            revision=None,
            precision=checkpoint.source.precision,
            fingerprint=fingerprint or checkpoint.fingerprint,
        ),
        model=ModelRecord(
            backend="onnx",
            graph="model/model.onnx",
            scoring_graph="model/scoring.onnx",
            weights=None,
            activations="f32",
            kv_cache="f32",
            context_length=context_length,
            vocab_size=architecture.vocab_size,
            num_hidden_layers=architecture.num_hidden_layers,
            num_key_value_heads=architecture.num_key_value_heads,
            head_dim=architecture.head_dim,
            bos_token_id=architecture.bos_token_id,
            eos_token_ids=architecture.eos_token_ids,
            tokenizer="model/tokenizer.json",
            chat_template=None,
            bos_token=checkpoint.tokenizer.bos_token,
            eos_token=checkpoint.tokenizer.eos_token,
            add_bos=checkpoint.tokenizer.add_bos,
            generation=GenerationRecord(),
        ),
        requirements=Requirements(packages={}, provider="CPUExecutionProvider"),
        determinism=Determinism(reproducible=True, note=""),
        notices={},
    )
    return bundle


@dataclass
class NoisyModel:
    """The original's own logits, disturbed by `noise`; the same ids get the same answer."""

    checkpoint: Checkpoint
    noise: float
    calls: int = 0

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self.calls += 1
        logits = forward(self.checkpoint, np.array(ids, np.int64))
        disturbance = np.random.default_rng(sum(ids)).standard_normal(logits.shape)
        return (logits + self.noise * disturbance).astype(np.float32)


def answer_with(monkeypatch: pytest.MonkeyPatch, model: NoisyModel) -> NoisyModel:
    """Let `runtime.load` give `model`."""

    def load(path: Path, *, threads: int | None = None, verify: str = "quick", device: str | None = None) -> NoisyModel:
        return model

    monkeypatch.setattr(runtime, "load", load)
    return model
