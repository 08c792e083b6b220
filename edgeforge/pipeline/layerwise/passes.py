"""What all layers of a calibrated pass share: the text, its batches, their statistics, the first and the last step."""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgeforge.errors import OutOfResources, UnusableInput
from edgeforge.model.checkpoint import Checkpoint, TensorRows
from edgeforge.model.forward import embed
from edgeforge.pipeline.layerwise.decoder import (
    MODULES,
    NORMS,
    Matrices,
    Shapes,
    rms_norm,
    weight_name,
)
from edgeforge.pipeline.layerwise.hidden import HiddenStates
from edgeforge.pipeline.layerwise.statistics import Statistics
from edgeforge.pipeline.layerwise.workers import Workers, products_in_bfloat16

BATCH_TOKENS = 4096  # whose inputs of one linear are in memory together
EMBEDDED_TOKENS = 32768  # at once, since all of the embedding is read for them: 0.5 GB of an 8B model
BLOCKS = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
STAGES = 5


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
        with products_in_bfloat16():
            for batch in self.batches():
                self.team.map(function, batch)
        self.step()

    def statistics(
        self, where: str, channels: int, drifting: int, function: Callable[[int], tuple[torch.Tensor, torch.Tensor]]
    ) -> Statistics:
        """Of what `function` gives for each sequence: inputs [T, channels] and their drift [T, drifting].

        UnusableInput, naming `where`, for NaN and infinity.
        """
        length = self.ids.shape[1]
        statistics = Statistics(channels, drifting, self.device, self.team)
        rows = max(map(len, self.batches())) * length
        inputs, drifts = (torch.empty(rows, width, device=self.device) for width in (channels, drifting))
        for batch in self.batches():

            def fill(sequence: int, first: int = batch[0]) -> None:
                here = slice((sequence - first) * length, (sequence - first + 1) * length)
                inputs[here], drifts[here] = function(sequence)

            with products_in_bfloat16():
                self.team.map(fill, batch)
            statistics.add(inputs[: len(batch) * length], drifts[: len(batch) * length], length)
        statistics.finish()
        if not statistics.is_finite():
            raise UnusableInput(
                f"the activations are not finite at {where} on the calibration text",
                hint="the checkpoint is damaged, or its training diverged; fetch it again or take another",
            )
        self.step()
        return statistics


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
    count, length = run.ids.shape
    step = max(1, EMBEDDED_TOKENS // length)
    for first in range(0, count, step):
        ids = run.ids[first : first + step]
        x = torch.from_numpy(embed(embedding, ids.reshape(-1)))
        for place in range(len(ids)):
            states.write(first + place, x[place * length :][:length])


def final_statistics(run: Pass, states: HiddenStates, meant: HiddenStates | None, head: str) -> Statistics:
    """Of what the output head is given; `meant`: in the original."""
    norm = torch.from_numpy(run.checkpoint.tensor("model.norm.weight").rows(0, states.shape[2])).to(run.device)

    def normed(sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = rms_norm(states.read(sequence).to(run.device), norm, run.shapes.epsilon)
        if meant is None:
            return x, x[:, :0]
        return x, rms_norm(meant.read(sequence).to(run.device), norm, run.shapes.epsilon) - x

    return run.statistics(head, states.shape[2], 0 if meant is None else states.shape[2], normed)


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
