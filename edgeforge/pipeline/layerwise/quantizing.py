"""The calibrated pass itself: layer by layer, block by block, each on what the blocks before it, quantized, give it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgeforge import __version__
from edgeforge.model.checkpoint import Checkpoint, TensorRows
from edgeforge.pipeline import sensitivity
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.pipeline.layerwise.codes import chosen_names, drift_of, is_residual, joined, quantize_block
from edgeforge.pipeline.layerwise.collecting import open_pass, states_of, stream_of
from edgeforge.pipeline.layerwise.decoder import NORMS, Matrices, weight_name
from edgeforge.pipeline.layerwise.figures import calibration_of, figures_of
from edgeforge.pipeline.layerwise.layer import run_layer
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
from edgeforge.pipeline.layerwise.recipe import Recipe, folding
from edgeforge.pipeline.layerwise.smoothing import Smoothing, smooth
from edgeforge.pipeline.layerwise.state import MEANT, NOW, Quantized, StateFolder, key_of, stored_form
from edgeforge.pipeline.layerwise.statistics import Statistics
from edgeforge.pipeline.layerwise.workers import workers
from edgeforge.planning import EMBEDDING, BuildPlan, plan_to_json
from edgeforge.quantization.loss import values
from edgeforge.quantization.quantize import Algorithm, quantize
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize

HEAD_ROWS = 8192  # of the output head that are read together
GRADIENT_SAMPLES, GRADIENT_LENGTH = 4, 512  # sequences that say what a first token weighs, and their tokens: all of a
# sequence's logits are in memory at once

Stored = dict[str, NDArray[np.generic]]
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What every layer is quantized with.

    chosen  tensors whose codes are chosen here
    names   of the streams: NOW, and MEANT where the recipe corrects
    first   by linear, how many other tokens a sequence's first one counts as
    """

    plan: BuildPlan
    names: tuple[str, ...]
    chosen: frozenset[str]
    first: Mapping[str, float]
    recipe: Recipe
    state: StateFolder
    log: Log
    run: Pass


def run(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    tokens: CalibrationTokens,
    recipe: Recipe,
    folder: Path,
    *,
    device: str,
    threads: int,
    progress: Callable[[int, int], None],
    log: Log,
) -> Quantized:
    """See `edgeforge.pipeline.layerwise.quantize_layers`."""
    layers = checkpoint.architecture.num_hidden_layers
    with resources_told(folder), workers(1 if device != "cpu" else threads) as team:
        key = key_of(
            work="quantize",
            version=__version__,
            fingerprint=checkpoint.fingerprint,
            plan=plan_to_json(plan),
            text=tokens.text_sha256,
            ids=hashlib.sha256(tokens.ids.tobytes()).hexdigest(),
            recipe=asdict(recipe),
            device=device,
        )
        state = StateFolder(folder, key, log)
        names = (NOW, MEANT) if recipe.corrects and recipe.compensates else (NOW,)
        first = state.resume_at(layers, names)
        passes = 2 if recipe.smooths else 1
        before = 2 * layers if recipe.emphasis else 0  # steps of the gradients
        whole = before + steps_of(layers, passes=passes)
        times = _first_counts(checkpoint, tokens, recipe, state, device, threads, lambda done, _: progress(done, whole))
        after = partial(_told_later, progress, before)
        own = open_pass(checkpoint, tokens, state, device, team, after, first=first, passes=passes)
        chosen = chosen_names(checkpoint, plan)
        work = _Work(plan=plan, chosen=chosen, first=times, names=names, recipe=recipe, state=state, log=log, run=own)
        if first == 0:
            for name, embedding in zip(names, (_rounded_embedding(work), checkpoint.tensor(EMBEDDING)), strict=False):
                start_states(own, embedding, states_of(own, state, 0, name))
        for layer in range(first, layers):
            _quantize_layer(work, layer)
        if not state.part(layers).is_file():
            _quantize_head(work, layers)
    return Quantized(state, layers + 1, plan.schemes, calibration_of(state, plan.architecture, tokens))


def _told_later(progress: Callable[[int, int], None], before: int, done: int, total: int) -> None:
    progress(before + done, before + total)


def _first_counts(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    recipe: Recipe,
    state: StateFolder,
    device: str,
    threads: int,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """By linear, how many other tokens a sequence's first one counts as; kept for when the pass is gone on with."""
    if not recipe.emphasis:
        return {}
    if not state.first.is_file():
        few = tokens.ids[:GRADIENT_SAMPLES, :GRADIENT_LENGTH]
        folder = state.path / "gradients"
        try:
            measured = sensitivity.measure(checkpoint, few, folder, device=device, threads=threads, progress=progress)
        except FloatingPointError:
            return {}  # the pass comes to the layer, and names it
        partial_file = state.first.with_suffix(".partial")
        partial_file.write_text(json.dumps(dict(measured.first)), encoding="utf-8")
        partial_file.replace(state.first)
    first: dict[str, float] = json.loads(state.first.read_text(encoding="utf-8"))
    return {name: ratio**recipe.emphasis for name, ratio in first.items()}


def _quantize_layer(work: _Work, layer: int) -> None:
    plan, run, state = work.plan, work.run, work.state
    w = load_layer(run.checkpoint, layer, run.device)
    now = stream_of(run, state, layer, w)
    smoothing = Smoothing(folding=folding(plan))
    stored: Stored = {}
    if work.recipe.smooths:
        inputs: dict[str, Statistics] = {}
        run_layer(run, layer, now, None, inputs.__setitem__, output=False)
        smoothing = smooth(plan, work.chosen, layer, w, inputs, smoothing.folding, run.team)
        del inputs
        if smoothing.folding == "fold":
            stored |= {weight_name(layer, norm): w[norm].cpu().numpy() for norm in NORMS}

    def visit(block: str, statistics: Statistics) -> None:
        stored.update(_quantize_visited(work, layer, block, w, statistics, smoothing.kept.get(block)))

    meant = stream_of(run, state, layer, dict(w), MEANT) if MEANT in work.names else None
    stored |= figures_of(layer, run_layer(run, layer, now, meant, visit))
    state.save(layer, stored)
    for stream in (now, meant):
        if stream is not None:
            stream.before.path.unlink()


def _quantize_visited(
    work: _Work, layer: int, block: str, w: Matrices, statistics: Statistics, factors: torch.Tensor | None
) -> Stored:
    """Codes of one block, whose weights in `w` become what the codes stand for; and its input's largest magnitude."""
    names = names_of(layer, block)
    weights = {name: w[role] for role, name in zip(BLOCKS[block], names, strict=True)}
    stored: Stored = {}
    if factors is not None:
        statistics.scale(factors, in_inputs=not is_residual(block))
        weights = {name: weight / factors for name, weight in weights.items()}
        stored |= {name + ".pre_quant_scale": factors.cpu().numpy() for name in names}
    stored |= {name + ".input_amax": np.array(float(statistics.largest.max()), np.float32) for name in names}
    stored |= _changed(work, weights)
    for tensors in _quantize_alike(work, block, weights, statistics):
        for name, tensor in tensors.items():
            stored |= stored_form(name, tensor)
            rounded = values(tensor, work.run.device)
            w[BLOCKS[block][names.index(name)]] = rounded if factors is None else rounded.mul_(factors)
    return stored


def _quantize_alike(
    work: _Work, block: str, weights: Matrices, statistics: Statistics
) -> Iterator[dict[str, QuantizedTensor]]:
    """Those of `weights` whose codes are chosen here, together where they share a scheme and a first token's weight."""
    schemes = {name: work.plan.schemes[name] for name in weights if name in work.chosen}
    largest = {
        scheme: max(float(weights[name].abs().max()) for name in schemes if schemes[name] == scheme)
        for scheme in set(schemes.values())
        if scheme.needs_amax
    }
    times = {name: work.first.get(name, 1.0) for name in schemes}
    for scheme, first in dict.fromkeys((schemes[name], times[name]) for name in schemes):
        alike = {name: weights[name] for name in schemes if (schemes[name], times[name]) == (scheme, first)}
        statistics.count_first(first)
        drift, amax = drift_of(block, statistics), largest.get(scheme)
        yield quantize_block(alike, statistics.gram, drift, scheme, work.recipe, work.run.team, work.log, amax=amax)


def _changed(work: _Work, weights: Matrices) -> Stored:
    """Weights that stay float are only stored where a factor was folded into them."""
    if not work.recipe.smooths:
        return {}
    return {name: weight.cpu().numpy() for name, weight in weights.items() if work.plan.schemes[name].is_float}


def _quantize_head(work: _Work, layers: int) -> None:
    """The output head's codes, where they are chosen here, and the largest magnitude of its input."""
    run, name = work.run, head_name(work.run.checkpoint)
    scheme, tensor = work.plan.schemes[name], run.checkpoint.tensor(name)
    now, meant = (states_of(run, work.state, layers, which) for which in (NOW, MEANT))
    statistics = final_statistics(run, now, meant if MEANT in work.names else None, name)
    drift = drift_of("lm_head", statistics)
    stored: Stored = {name + ".input_amax": np.array(float(statistics.largest.max()), np.float32)}
    if work.recipe.head and name in work.chosen:
        pieces = []
        for start in range(0, tensor.shape[0], HEAD_ROWS):
            rows = torch.from_numpy(tensor.rows(start, min(start + HEAD_ROWS, tensor.shape[0]))).to(run.device)
            # a scheme with one scale for all rows is no head's: only integers are
            block = quantize_block({name: rows}, statistics.gram, drift, scheme, work.recipe, run.team, work.log)
            pieces.append(block[name])
        stored |= stored_form(name, joined(pieces))
    work.state.save(layers, stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rounded:
    """Rows of the embedding as they will be stored, but for what the output head's calibration changes in tied ones."""

    tensor: TensorRows
    scheme: QuantizationScheme
    recipe: Recipe

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        algorithm: Algorithm = "rtn" if self.recipe.algorithm == "rtn" else "search"
        return dequantize(quantize(self.tensor.rows(start, stop), self.scheme, algorithm=algorithm))


def _rounded_embedding(work: _Work) -> TensorRows:
    tensor, scheme = work.run.checkpoint.tensor(EMBEDDING), work.plan.schemes[EMBEDDING]
    return _Rounded(tensor=tensor, scheme=scheme, recipe=work.recipe) if EMBEDDING in work.chosen else tensor
