"""Both models on the same tokens, and what a figure over them is worth."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import GateFailed, UnusableInput
from edgeforge.runtime.model import Model
from edgeforge.validation.findings import ProbeVerdict
from edgeforge.validation.gate import Check, Limits
from edgeforge.validation.paired import judge_ratio
from edgeforge.validation.probes.common import listed
from edgeforge.validation.statistics import NonFiniteLogitsError, TokenValues, compare_logits

ITEM_TOKENS = 16
"""Neighbouring tokens are not independent: items of this many are, near enough, and are what is drawn."""


def compare_answers(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], targets: Sequence[int]
) -> TokenValues:
    """Per-token values of logits [T, V] and the tokens that came next [T].

    Logits that are not finite raise GateFailed (the candidate's) or UnusableInput (the reference's).
    """
    try:
        return compare_logits(reference, candidate, np.asarray(targets, np.int64))
    except NonFiniteLogitsError as error:
        if error.who == "candidate":
            raise GateFailed(
                "the bundle's logits are not finite: its activations overflow",
                hint="build it with 32-bit activations, or another scheme",
            ) from None
        raise UnusableInput(
            "the original's own logits are not finite", hint="the checkpoint is damaged; fetch it again"
        ) from None


def score_both(reference: Model, candidate: Model, ids: Sequence[int]) -> TokenValues:
    """Both read `ids` from an empty context; all but the first are scored."""
    return compare_answers(reference.score(ids)[:-1], candidate.score(ids)[:-1], ids[1:])


def judge_tokens(figure: str, values: TokenValues, limits: Limits, *, tests: int) -> Check:
    """The perplexities' ratio against the target's limit, by items of neighbouring tokens.

    `tests` such checks are made, of which none should fail by chance: each gets its share of 1 - confidence
    (Bonferroni).
    """
    starts = np.arange(0, len(values), ITEM_TOKENS)
    reference, candidate, weights = (
        np.add.reduceat(each, starts) for each in (values.reference_nll, values.candidate_nll, np.ones(len(values)))
    )
    return judge_ratio(
        figure,
        reference,
        candidate,
        weights,
        limit=limits.max_perplexity_ratio,
        confidence=1 - (1 - limits.confidence) / tests,
    )


def worst_of(checks: Sequence[Check], *, everything: str, told: str) -> tuple[ProbeVerdict, str]:
    """A probe's verdict on several checks against one limit, and the sentence that says so.

    Where there is too little text to tell, nothing is held against the bundle, and the sentence says that.
    """
    limit = checks[0].limit
    failed = [check.figure for check in checks if check.verdict == "fail"]
    undecided = [check.figure for check in checks if check.verdict == "undecided"]
    if failed:
        return "fail", f"The perplexity ratio exceeds the target's limit of {limit:g} for {listed(failed)}: {told}."
    if undecided:
        few = everything if len(undecided) == len(checks) else listed(undecided)
        summary = f"The target's limit of {limit:g} is not surely exceeded, too few tokens to tell for {few}: {told}."
        return "pass", summary
    return "pass", f"The perplexity ratio keeps the target's limit of {limit:g} for {everything}: {told}."
