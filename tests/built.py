"""Bundles built in a test, and what the tests ask other people's programs about them."""

import gzip
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeforge.hardware import load_target
from edgeforge.model.architecture import hf_config
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.pipeline import BuildOptions, build, resolve_target
from edgeforge.planning import BuildPlan
from edgeforge.runtime import load

if TYPE_CHECKING:
    import torch

    from edgeforge.runtime.model import Model

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Build:
    """A bundle, the plan it follows, and the checkpoint it was made of."""

    bundle: Path
    plan: BuildPlan
    model: str

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.model)

    def load(self) -> "Model":
        """A runtime of its own, on the CPU whatever the bundle's device."""
        return load(self.bundle, device="cpu")


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def build_once(
    folder: Path,
    model: str,
    *,
    target: str = "cpu",
    scheme: str | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    context: int | None = None,
    threads: int | None = None,
) -> Build:
    """Build `model` into `folder`/bundle, without validating."""
    resolved = resolve_target(
        load_target(target), scheme=scheme, group_size=group_size, symmetric=symmetric, context=context
    )
    options = BuildOptions(target=resolved, model=model, out=folder / "bundle", validate=False, threads=threads)
    result = build(options, progress=quiet)
    return Build(bundle=result.bundle, plan=result.plan, model=model)


def all_rows(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    tensor = checkpoint.tensor(name)
    return tensor.rows(0, tensor.shape[0])


def transformers_twin(checkpoint: Checkpoint) -> "torch.nn.Module":
    """transformers' LlamaForCausalLM in float32 with the checkpoint's weights."""
    import torch
    import transformers

    architecture = checkpoint.architecture
    config = transformers.LlamaConfig(**hf_config(architecture, dtype="float32"))  # type: ignore[no-untyped-call]
    with torch.device("meta"):
        model: torch.nn.Module = transformers.LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    state = {name: torch.from_numpy(all_rows(checkpoint, name)) for name in checkpoint.names}
    if architecture.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    # Not in the state: computed from the config, and meta above.
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    model.get_submodule("model").add_module("rotary_emb", rotary)
    model.train(False)
    return model


def twin_logits(twin: "torch.nn.Module", ids: NDArray[np.int64]) -> Logits:
    """float32 [B, T, V] for ids [B, T]."""
    import torch

    with torch.no_grad():
        return np.asarray(twin(torch.from_numpy(ids)).logits.numpy())


def greedy(model: "Model", prompt: list[int], count: int) -> list[int]:
    """`count` tokens after the prompt, most likely first, end-of-text or not."""
    chunks = model.generate(prompt, max_new_tokens=count, temperature=0, repetition_penalty=1.0, ignore_eos=True)
    return [token for chunk in chunks for token in chunk.token_ids]


def tiny_stories(test_data: Path) -> str:
    with gzip.open(test_data / "calibration" / "tiny.txt.gz", "rt", encoding="utf-8") as file:
        return file.read()


def prompts(model: "Model", text: str, *, count: int = 4, length: int = 200) -> list[list[int]]:
    """`count` prompts of `length` tokens from different places of the text, with the BOS that the model expects."""
    step = len(text) // count
    found = [model.encode(text[i * step : (i + 1) * step])[:length] for i in range(count)]
    assert all(len(ids) == length for ids in found)
    return found


def mean_kl_divergence(reference: Logits, candidate: Logits) -> float:
    """Mean over tokens of KL(reference || candidate), in float64 from logits [..., V]."""

    def log_softmax(logits: Logits) -> NDArray[np.float64]:
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))

    p, q = log_softmax(reference), log_softmax(candidate)
    return float((np.exp(p) * (p - q)).sum(-1).mean())
