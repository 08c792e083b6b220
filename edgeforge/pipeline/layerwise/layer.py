"""Calibration text through one decoder layer, stopping where a block of linears is to be quantized.

Between the stops activations are files, so that each linear runs once over the text (the MLP's first half twice), and
every stop sees what the blocks before it do with the weights that they have by then.

    qkv        norm(x)                  x is in the file of hidden states
    o          attention(norm(x))       kept in a scratch file
    gate_up    norm(x + o(...))         x + o(...) is kept in the next file of hidden states
    down       swiglu(norm(...))        computed again for the layer's output, which takes its place

The original's own activations may run beside them, for what has drifted since (GPTAQ, arXiv 2504.02692): at qkv and
gate_up the input that the original would have, less the one here; at o and down, which write to the residual stream,
the stream that the original would have behind them, less the one here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from edgeforge.pipeline.layerwise.decoder import MLP_ROWS, Matrices, Shapes, attention, rms_norm, swiglu, weight_name
from edgeforge.pipeline.layerwise.hidden import HiddenStates
from edgeforge.pipeline.layerwise.passes import BLOCKS, Pass
from edgeforge.pipeline.layerwise.statistics import Statistics

Visit = Callable[[str, Statistics], None]
"""(block, what its linears are given): may replace the block's weights."""
Given = tuple[torch.Tensor, torch.Tensor]
"""Inputs [T, K] of one sequence, and their drift [T, M]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFigures:
    """The largest |k|, as cached, and |v| of a layer."""

    keys: float
    values: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Hidden states on their way through a layer with weights `w`. `mixed`: a scratch file of what o is given."""

    w: Matrices
    s: Shapes
    before: HiddenStates
    mixed: HiddenStates
    after: HiddenStates
    device: torch.device

    def create(self) -> None:
        self.mixed.create()
        self.after.create()

    def read(self, states: HiddenStates, sequence: int) -> torch.Tensor:
        return states.read(sequence).to(self.device)

    def attention_input(self, sequence: int) -> torch.Tensor:
        return rms_norm(self.read(self.before, sequence), self.w["attention"], self.s.epsilon)

    def attend(self, sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What o is given, which is kept, and the largest |k| and |v|, float32 [2]."""
        answer, k, v = attention(self.attention_input(sequence), self.w, self.s)
        self.mixed.write(sequence, answer)
        return answer, torch.stack([k.abs().max(), v.abs().max()]).cpu()

    def mlp_input(self, sequence: int) -> torch.Tensor:
        return rms_norm(self.read(self.after, sequence), self.w["mlp"], self.s.epsilon)

    def add_attention(self, sequence: int) -> torch.Tensor:
        """What the MLP is given; the residual stream before it is kept."""
        answer = functional.linear(self.read(self.mixed, sequence), self.w["o"])
        self.after.write(sequence, self.read(self.before, sequence) + answer)
        return self.mlp_input(sequence)

    def gated(self, sequence: int) -> torch.Tensor:
        """What down is given."""
        return swiglu(self.mlp_input(sequence), self.w)

    def add_mlp(self, sequence: int) -> None:
        answer = functional.linear(self.gated(sequence), self.w["down"])
        self.after.write(sequence, self.read(self.after, sequence) + answer)


def run_layer(
    run: Pass, layer: int, now: Stream, meant: Stream | None, visit: Visit, *, output: bool = True
) -> CacheFigures:
    """`now` through the layer; without `output`, only as far as the last block. `meant`: the original's, beside it.

    `visit` is called before each block's linears run, and what it does to `now.w` is what runs. Weights that nothing
    needs any more leave both streams, and those that are needed again lie in a file while the last block, whose Gram
    matrix is the largest, is quantized.
    """
    architecture = run.checkpoint.architecture
    hidden, largest = architecture.hidden_size, torch.zeros(2, len(run.ids))

    def beside(x: torch.Tensor, function: Callable[[Stream], torch.Tensor]) -> Given:
        return x, x[:, :0] if meant is None else function(meant) - x

    def qkv(sequence: int) -> Given:
        return beside(now.attention_input(sequence), lambda stream: stream.attention_input(sequence))

    def o(sequence: int) -> Given:
        x, largest[:, sequence] = now.attend(sequence)
        if meant is None:
            return x, x[:, :0]
        before = meant.read(meant.before, sequence) - now.read(now.before, sequence)
        return x, before + functional.linear(meant.attend(sequence)[0] - x, now.w["o"])

    def gate_up(sequence: int) -> Given:
        return beside(now.add_attention(sequence), lambda stream: stream.add_attention(sequence))

    def down(sequence: int) -> Given:
        x = now.gated(sequence)
        if meant is None:
            return x, x[:, :0]
        drift, h = meant.read(meant.after, sequence) - now.read(now.after, sequence), meant.mlp_input(sequence)
        for start in range(0, len(x), MLP_ROWS):
            some = slice(start, start + MLP_ROWS)
            drift[some] += functional.linear(swiglu(h[some], meant.w) - x[some], now.w["down"])
        return x, drift

    def finish(sequence: int) -> None:
        for stream in streams:
            stream.add_mlp(sequence)

    streams = [now] if meant is None else [now, meant]
    for stream in streams:
        stream.create()
    widths = {"o": now.mixed.shape[2], "down": architecture.intermediate_size}
    for block, function in {"qkv": qkv, "o": o, "gate_up": gate_up, "down": down}.items():
        drifting = 0 if meant is None else hidden
        where = weight_name(layer, BLOCKS[block][0])
        statistics = run.statistics(where, widths.get(block, hidden), drifting, function)
        with _aside(streams, run.folder / "aside.f32", ("gate", "up") if block == "down" else ()):
            visit(block, statistics)
        del statistics
        if output:
            _forget(streams, {"o": "qkv", "gate_up": "o"}.get(block, ""))
    if output:
        run.each(finish)
    return CacheFigures(keys=float(largest[0].max()), values=float(largest[1].max()))


@contextmanager
def _aside(streams: list[Stream], path: Path, roles: Sequence[str]) -> Iterator[None]:
    """Within the block, the weights of `roles` are in a file rather than in memory."""
    kept = [(stream, role, stream.w.pop(role)) for stream in streams for role in roles]
    shapes = [(stream, role, matrix.shape) for stream, role, matrix in kept]
    with path.open("wb") as file:
        while kept:
            file.write(kept.pop(0)[2].cpu().numpy().data)
    try:
        yield
    finally:
        with path.open("rb") as file:
            for stream, role, shape in shapes:
                values = np.fromfile(file, np.float32, shape.numel())
                stream.w[role] = torch.from_numpy(values.reshape(shape)).to(stream.device)


def _forget(streams: list[Stream], roles: str) -> None:
    for stream in streams:
        for role in roles:
            stream.w.pop(role, None)
