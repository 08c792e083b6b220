"""Gram matrices of the unquantized model: what the bit budget weighs its options by."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from edgeforge import __version__
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.pipeline.layerwise.decoder import Matrices, shapes
from edgeforge.pipeline.layerwise.hidden import HiddenStates
from edgeforge.pipeline.layerwise.layer import Stream, run_layer
from edgeforge.pipeline.layerwise.passes import (
    BLOCKS,
    Pass,
    final_statistics,
    head_name,
    load_layer,
    names_of,
    resources_told,
    start_states,
    steps_of,
)
from edgeforge.pipeline.layerwise.state import FIRST, NOW, Grams, StateFolder, key_of
from edgeforge.pipeline.layerwise.statistics import Statistics
from edgeforge.pipeline.layerwise.workers import Workers, workers


def run(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    folder: Path,
    *,
    device: str,
    threads: int,
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> Grams:
    """See `edgeforge.pipeline.layerwise.collect_grams`."""
    layers, head = checkpoint.architecture.num_hidden_layers, head_name(checkpoint)
    with resources_told(folder), workers(1 if device != "cpu" else threads) as team:
        key = key_of(
            work="grams, first tokens",
            version=__version__,
            fingerprint=checkpoint.fingerprint,
            text=tokens.text_sha256,
            ids=hashlib.sha256(tokens.ids.tobytes()).hexdigest(),
            device=device,
        )
        state = StateFolder(folder, key, log)
        first = state.resume_at(layers)
        collecting = open_pass(checkpoint, tokens, state, device, team, progress, first=first, passes=1)
        if first == 0:
            start_states(collecting, checkpoint.tensor("model.embed_tokens.weight"), states_of(collecting, state, 0))
        for layer in range(first, layers):
            _collect_layer(collecting, state, layer)
        if not state.part(layers).is_file():
            statistics = final_statistics(collecting, states_of(collecting, state, layers), None, head)
            state.save(layers, {head: statistics.gram.cpu().numpy(), head + FIRST: statistics.first.cpu().numpy()})
    shared = [names_of(layer, block) for layer in range(layers) for block in BLOCKS]
    owners = {name: names[0] for names in shared for name in names}
    return Grams(state, layers + 1, {**owners, head: head}, tokens.ids.size)


def _collect_layer(collecting: Pass, state: StateFolder, layer: int) -> None:
    found: dict[str, torch.Tensor] = {}

    def keep(block: str, statistics: Statistics) -> None:
        owner = names_of(layer, block)[0]
        found[owner], found[owner + FIRST] = statistics.gram, statistics.first

    w = load_layer(collecting.checkpoint, layer, collecting.device)
    stream = stream_of(collecting, state, layer, w)
    run_layer(collecting, layer, stream, None, keep)
    state.save(layer, {name: values.cpu().numpy() for name, values in found.items()})
    stream.before.path.unlink()


def states_of(run: Pass, state: StateFolder, layer: int, name: str = NOW) -> HiddenStates:
    """The hidden states before `layer`, of one of two streams."""
    return HiddenStates(state.states(layer, name), run.hidden_shape)


def stream_of(run: Pass, state: StateFolder, layer: int, w: Matrices, name: str = NOW) -> Stream:
    a = run.checkpoint.architecture
    return Stream(
        w=w,
        s=run.shapes,
        before=states_of(run, state, layer, name),
        mixed=HiddenStates(run.folder / f"{name}-mixed.f32", (*run.ids.shape, a.num_attention_heads * a.head_dim)),
        after=states_of(run, state, layer + 1, name),
        device=run.device,
    )


def open_pass(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    state: StateFolder,
    device: str,
    team: Workers,
    progress: Callable[[int, int], None],
    *,
    first: int,
    passes: int,
) -> Pass:
    """A pass that begins at layer `first`, and runs each layer `passes` times."""
    layers = checkpoint.architecture.num_hidden_layers
    total = steps_of(layers, passes=passes)
    done = total - steps_of(layers - first, passes=passes)

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    place = torch.device(device)
    return Pass(
        checkpoint=checkpoint,
        ids=tokens.ids,
        folder=state.path,
        shapes=shapes(checkpoint.architecture, tokens.ids.shape[1], place),
        device=place,
        team=team,
        step=step,
    )
