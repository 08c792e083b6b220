"""Calibration text through one decoder layer, stopping where a block of linears is to be quantized.

Between the stops activations are files, so that each linear runs once over the text (the MLP's first half twice), and
every stop sees what the blocks before it do with the weights that they have by then.

    qkv        norm(x)                  x is in the file of hidden states
    o          attention(norm(x))       kept in a scratch file
    gate_up    norm(x + o(...))         x + o(...) is kept in the next file of hidden states
    down       swiglu(norm(...))        computed again for the layer's output, which takes its place
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgeforge.errors import OutOfResources, UnusableInput
from edgeforge.model.checkpoint import Checkpoint, TensorRows
from edgeforge.model.forward import embed
from edgeforge.pipeline.layerwise.decoder import (
    MODULES,
    NORMS,
    Matrices,
    Shapes,
    attention,
    rms_norm,
    swiglu,
    weight_name,
)
from edgeforge.pipeline.layerwise.hidden import HiddenStates
from edgeforge.pipeline.layerwise.statistics import Statistics
from edgeforge.pipeline.layerwise.workers import Workers

BATCH_TOKENS = 8192  # whose inputs of one linear are in memory together
BLOCKS = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
STAGES = 5

Visit = Callable[[str, Statistics], None]
"""(block, what its linears are given): may replace the block's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What all layers of one pass share. `step` is told of each finished stage of a layer, and of the head."""

    checkpoint: Checkpoint
    ids: NDArray[np.int64]
    folder: Path
    shapes: Shapes
    device: torch.device
    team: Workers
    step: Callable[[], None]

    @property
    def hidden_shape(self) -> tuple[int, int, int]:
        return (*self.ids.shape, self.checkpoint.architecture.hidden_size)

    def batches(self) -> Iterator[range]:
        """Sequences that are in memory together."""
        count, length = self.ids.shape
        size = max(1, BATCH_TOKENS // length)
        return (range(start, min(start + size, count)) for start in range(0, count, size))

    def each(self, function: Callable[[int], None]) -> None:
        """Call `function` with every sequence's number, on the team's threads."""
        for batch in self.batches():
            self.team.map(function, batch)
        self.step()

    def statistics(self, where: str, channels: int, function: Callable[[int], torch.Tensor]) -> Statistics:
        """Of what `function` gives for each sequence, [T, channels]. UnusableInput, naming `where`, for NaN."""
        length = self.ids.shape[1]
        statistics = Statistics(channels, self.device, self.team)
        buffer = torch.empty(max(map(len, self.batches())) * length, channels, device=self.device)
        for batch in self.batches():

            def fill(sequence: int, first: int = batch[0]) -> None:
                buffer[(sequence - first) * length :][:length] = function(sequence)

            self.team.map(fill, batch)
            statistics.add(buffer[: len(batch) * length])
        statistics.finish()
        if not statistics.is_finite():
            raise UnusableInput(
                f"the activations are not finite at {where} on the calibration text",
                hint="the checkpoint is damaged, or its training diverged; fetch it again or take another",
            )
        self.step()
        return statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFigures:
    """The largest |k|, as cached, and |v| of a layer."""

    keys: float
    values: float


def run_layer(
    run: Pass, layer: int, w: Matrices, before: HiddenStates, after: HiddenStates, visit: Visit, *, output: bool = True
) -> CacheFigures:
    """`before` through the layer with weights `w`, into `after`; without `output`, only as far as the last block.

    `visit` is called before each block's linears run, and what it does to `w` is what runs. Weights that nothing needs
    any more leave `w` before the last block, whose Gram matrix is the largest.
    """
    a, s = run.checkpoint.architecture, run.shapes
    mixed = HiddenStates(run.folder / "scratch.f32", (*run.ids.shape, a.num_attention_heads * a.head_dim))
    largest = torch.zeros(2, len(run.ids))

    def load(states: HiddenStates, sequence: int) -> torch.Tensor:
        return states.read(sequence).to(run.device)

    def normed(states: HiddenStates, norm: str, sequence: int) -> torch.Tensor:
        return rms_norm(load(states, sequence), w[norm], s.epsilon)

    def attend(sequence: int) -> torch.Tensor:
        answer, k, v = attention(normed(before, "attention", sequence), w, s)
        largest[:, sequence] = torch.stack([k.abs().max(), v.abs().max()]).cpu()
        mixed.write(sequence, answer)
        return answer

    def add_attention(sequence: int) -> torch.Tensor:
        x = load(before, sequence) + functional.linear(load(mixed, sequence), w["o"])
        after.write(sequence, x)
        return rms_norm(x, w["mlp"], s.epsilon)

    def gated(sequence: int) -> torch.Tensor:
        return swiglu(normed(after, "mlp", sequence), w)

    def finish(sequence: int) -> None:
        after.write(sequence, load(after, sequence) + functional.linear(gated(sequence), w["down"]))

    mixed.create()
    after.create()
    stages = (
        ("qkv", a.hidden_size, partial(normed, before, "attention")),
        ("o", mixed.shape[2], attend),
        ("gate_up", a.hidden_size, add_attention),
        ("down", a.intermediate_size, gated),
    )
    for block, channels, function in stages:
        statistics = run.statistics(weight_name(layer, BLOCKS[block][0]), channels, function)
        visit(block, statistics)
    if output:
        run.each(finish)
    return CacheFigures(keys=float(largest[0].max()), values=float(largest[1].max()))


def load_layer(checkpoint: Checkpoint, layer: int, device: torch.device) -> Matrices:
    """All of a layer's weights, float32. UnusableInput for NaN and infinity."""
    w = {}
    for word in (*MODULES, *NORMS):
        name = weight_name(layer, word)
        tensor = checkpoint.tensor(name)
        w[word] = torch.from_numpy(tensor.rows(0, tensor.shape[0])).to(device)
        if not torch.isfinite(w[word]).all():
            raise UnusableInput(
                f"{name} contains NaN or infinity",
                hint="the checkpoint is damaged, or its training diverged; fetch it again or take another",
            )
    return w


def start_states(run: Pass, embedding: TensorRows, states: HiddenStates) -> None:
    """The embedding's rows of every token."""
    states.create()
    for sequence, ids in enumerate(run.ids):
        states.write(sequence, torch.from_numpy(embed(embedding, ids)))


def final_statistics(run: Pass, states: HiddenStates, head: str) -> Statistics:
    """Of what the output head is given."""
    norm = torch.from_numpy(run.checkpoint.tensor("model.norm.weight").rows(0, states.shape[2])).to(run.device)

    def normed(sequence: int) -> torch.Tensor:
        return rms_norm(states.read(sequence).to(run.device), norm, run.shapes.epsilon)

    return run.statistics(head, states.shape[2], normed)


@contextmanager
def resources_told(folder: Path) -> Iterator[None]:
    """Memory and disk that ran out, as OutOfResources."""
    hint = "use a machine with more memory, fewer --threads, or less calibration text"
    try:
        yield
    except MemoryError:
        raise OutOfResources("the memory ran out during calibration", hint=hint) from None
    except RuntimeError as error:  # torch's own: of the CPU's allocator, and torch.OutOfMemoryError of CUDA's
        if "allocate" not in str(error):
            raise
        raise OutOfResources("the memory ran out during calibration", hint=hint) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OutOfResources(
            f"the disk of {folder.parent} is full: calibration keeps its activations there",
            hint="free some space, or choose a folder on another disk with --out",
        ) from None


def steps_of(layers: int, *, passes: int) -> int:
    """Steps that a whole pass tells: of `passes` runs through each layer all but the last stop before the output."""
    return layers * (passes * (STAGES - 1) + 1) + 1


def head_name(checkpoint: Checkpoint) -> str:
    """The tensor that is multiplied last."""
    return "model.embed_tokens.weight" if checkpoint.architecture.tie_word_embeddings else "lm_head.weight"


def names_of(layer: int, block: str) -> Sequence[str]:
    return [weight_name(layer, role) for role in BLOCKS[block]]
