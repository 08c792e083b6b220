"""Where the bundle leaves the original: the residual stream after each decoder layer, in both, on the same tokens.

A relative error |x' - x|^2 / |x|^2 of 1 is what a stream of zeros would have: from there on a layer's output tells
nothing of the original's. The probe fails where the error is surely beyond that; below, the figures say which layer
adds most. A bundle of a rotated model is compared with the original's stream turned the same way (x Q).

Shape letters: L layers, T tokens, D hidden.
"""

import numpy as np
from numpy.typing import NDArray

from edgeforge.model.orthogonal import orthogonal
from edgeforge.model.rotation import KIND
from edgeforge.runtime.manifest import Manifest
from edgeforge.validation.data import default_texts
from edgeforge.validation.findings import Layer, ProbeFigure
from edgeforge.validation.probes.common import SIGNIFICANCE, Found, Subject, Tell, skipped
from edgeforge.validation.probes.residuals import UntappableGraph, residual_streams
from edgeforge.validation.statistics import mean, student_t_quantile

TOKENS = 128


def probe_layers(subject: Subject, tell: Tell) -> Found:
    """The mean relative error after each layer, over the first tokens of the package's own text."""
    ids = subject.reference.encode(default_texts()[0])[: min(TOKENS, subject.context_length)]
    try:
        reference = residual_streams(subject.reference, ids)
        tell(0.5)
        candidate = residual_streams(subject.candidate, ids)
    except UntappableGraph as error:
        return skipped(str(error))
    if reference.shape != candidate.shape:
        return skipped(
            f"The original's graph has {len(reference)} layers and the bundle's {len(candidate)}, of widths "
            f"{reference.shape[-1]} and {candidate.shape[-1]}."
        )
    try:
        _turn(reference, subject.candidate.manifest)
    except UntappableGraph as error:
        return skipped(str(error))
    return judge_layers(relative_errors(reference, candidate))


def relative_errors(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.float64]:
    """|x' - x|^2 / |x|^2, float64 [L, T], of streams [L, T, D]; infinite where the candidate's is not finite."""
    errors = np.empty(reference.shape[:2])
    for layer, (x, y) in enumerate(zip(reference, candidate, strict=True)):
        x, y = x.astype(np.float64), y.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            errors[layer] = ((y - x) ** 2).sum(axis=1) / np.maximum((x * x).sum(axis=1), np.finfo(np.float64).tiny)
    return np.where(np.isfinite(errors), errors, np.inf)


def judge_layers(errors: NDArray[np.float64]) -> Found:
    """The verdict on relative errors [L, T]."""
    rows = tuple(Layer(index=index, relative_error=float(each.mean())) for index, each in enumerate(errors))
    means = errors.mean(axis=1)
    if not np.isfinite(means).all():
        index = int(np.argmin(np.isfinite(means)))
        known = rows[:index]
        return Found(
            verdict="fail", summary=f"What the bundle computes is not finite from layer {index} on.", layers=known
        )
    steps = np.diff(means, prepend=0.0)
    largest, last = int(np.argmax(steps)), len(rows) - 1
    figures = (
        ProbeFigure(name="error after the last layer", reference=None, candidate=rows[-1].relative_error, unit=""),
        ProbeFigure(name="layer that adds most", reference=None, candidate=largest, unit=""),
    )
    lost = [row.index for row, each in zip(rows, errors, strict=True) if _surely_above_one(each, len(rows))]
    if lost:
        summary = (
            f"From layer {lost[0]} on the residual stream has more error than signal "
            f"({rows[lost[0]].relative_error:.3g} times the original's energy)."
        )
    else:
        summary = (
            f"After layer {last}, the last, the residual stream is {100 * rows[-1].relative_error:.3g} % error by "
            f"energy; layer {largest} adds most."
        )
    return Found(verdict="fail" if lost else "pass", summary=summary, figures=figures, layers=rows)


def _surely_above_one(errors: NDArray[np.float64], tests: int) -> bool:
    """Whether the mean of errors [T] is above 1, by Student's t, each of `tests` layers with its share of chance."""
    estimate = mean(errors)
    margin = student_t_quantile(1 - SIGNIFICANCE / tests, len(errors) - 1) * estimate.standard_error
    return estimate.value - margin > 1.0


def _turn(reference: NDArray[np.float32], manifest: Manifest) -> None:
    """The original's stream [L, T, D] as the bundle's model was rotated, in place."""
    rotation = manifest.plan.get("rotation")
    if rotation is None:
        return
    seed = rotation.get("seed") if isinstance(rotation, dict) and rotation.get("kind") == KIND else None
    if not isinstance(seed, int):
        raise UntappableGraph("The bundle's model was rotated in a way that this release of EdgeForge does not know.")
    q = orthogonal(reference.shape[-1], seed)
    for layer in reference:
        q.turn_rows(layer)
