"""Does the bundle go in circles where the original does not? Greedy continuations, whose repeated 4-grams count.

A continuation's rate is 1 - distinct / all of its runs of four tokens (distinct-4 of Li et al., arXiv 1510.03055). The
test is exact: were the models alike, each prompt's difference would be as likely with the other sign (Fisher), and the
p-value is the share of all 2^n choices of signs that give as large a sum.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from edgeforge.runtime.model import Model
from edgeforge.validation.probes.asking import ask_both, continuation
from edgeforge.validation.probes.common import SIGNIFICANCE, Found, Subject, Tell, share, skipped

NEW_TOKENS = 128
ROOM = NEW_TOKENS + 32
GRAM = 4

PROMPTS = (
    "Once upon a time there was a small fox who",
    "The three most important things about cooking rice are",
    "On Monday morning the harbour was quiet. The first boat",
    "Water boils at a lower temperature on a mountain because",
    "Dear Sir or Madam,\n\nI am writing to you about",
    "def read_lines(path):\n    ",
    "The history of the bicycle begins",
    '"I did not see you come in," said the old man. He',
)


def probe_repetition(subject: Subject, tell: Tell) -> Found:
    """The repeated share, averaged over the prompts."""
    if subject.context_length < ROOM:
        return skipped(f"A context of {subject.context_length} tokens has no room for long continuations.")

    def rate(model: Model, prompt: str) -> float:
        return repeated_share(continuation(model, prompt, max_new_tokens=NEW_TOKENS))

    return judge_repetition(*ask_both(subject, PROMPTS, rate, tell))


def judge_repetition(reference: Sequence[float], candidate: Sequence[float]) -> Found:
    """The verdict on the prompts' repeated shares."""
    ours, theirs = float(np.mean(candidate)), float(np.mean(reference))
    p_value = sign_flip_test([b - a for a, b in zip(reference, candidate, strict=True)])
    worse = p_value < SIGNIFICANCE
    told = (
        f"{100 * ours:.0f} % of the runs of {GRAM} tokens in greedy continuations are repeats, "
        f"{100 * theirs:.0f} % of the original's"
    )
    if worse:
        told += f": more than chance would add (p = {p_value:.4f})"
    return Found(
        verdict="fail" if worse else "pass",
        summary=f"{told}.",
        figures=(share("repeated 4-grams", theirs, ours),),
    )


def repeated_share(ids: Sequence[int]) -> float:
    """1 - distinct / all runs of GRAM ids; 0 where there are none."""
    grams = [tuple(ids[start : start + GRAM]) for start in range(len(ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def sign_flip_test(differences: Sequence[float]) -> float:
    """The exact one-sided p-value of a sum that large; at most some 16 differences."""
    signs = np.array(list(product((1.0, -1.0), repeat=len(differences))))
    sums = signs @ np.asarray(differences, np.float64)
    return float(np.mean(sums >= sum(differences) - 1e-12))
