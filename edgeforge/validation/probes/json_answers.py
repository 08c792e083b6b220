"""Answers that programs read: does the bundle still write JSON that parses, where the original does?

Each answer is greedy and ends with its first whole JSON value; text and code fences around that are allowed. The same
prompts go to both models, and McNemar's exact test says whether the bundle lost more than chance would take.
"""

import json

from edgeforge.runtime.model import Model
from edgeforge.validation.findings import ProbeFigure
from edgeforge.validation.probes.asking import answer, ask_both
from edgeforge.validation.probes.common import Found, Pairs, Subject, Tell, share, skipped

MOST_TOKENS = 96
ROOM = 160  # tokens that a prompt and its answer take at most

PROMPTS = (
    "Give the name and age of Ada, who is 36 years old, as a JSON object with the keys name and age. Only JSON.",
    "Write a JSON array of the three primary colours as strings. Only JSON.",
    "Turn this into JSON with the keys city and country: Lyon lies in France. Only JSON.",
    "Write a JSON object with the key ok and the value true. Only JSON.",
    "List the numbers from 1 to 5 as a JSON array. Only JSON.",
    'Translate "dog" into French, German and Spanish. Answer as a JSON object with the keys fr, de and es.',
    "Describe a book as JSON with the keys title, author and year.",
    "Is 17 a prime number? Answer with a JSON object that has the keys number and prime.",
    'Extract the e-mail address from "write to anna@example.org by Friday" as JSON with the key email.',
    "Give a JSON array of two objects, each with the keys fruit and colour.",
    "A train leaves at 9:40 and arrives at 11:05. Answer as JSON with the keys departure and arrival.",
    "Write an empty JSON object and nothing else.",
    "Give the weekdays as a JSON array of strings.",
    'Classify the sentiment of "I loved every minute" as JSON: {"sentiment": "positive" or "negative"}.',
    "Write a JSON object for a user with the keys id, name and roles, where roles is an array of strings.",
    "What is 12 times 12? Answer as a JSON object with the key result.",
)


def probe_json(subject: Subject, tell: Tell) -> Found:
    """The share of answers with a JSON value in them."""
    if subject.context_length < ROOM:
        return skipped(f"A context of {subject.context_length} tokens has no room for answers.")

    def parses(model: Model, prompt: str) -> bool:
        return has_json(answer(model, prompt, max_new_tokens=MOST_TOKENS, enough=has_json))

    reference, candidate = ask_both(subject, PROMPTS, parses, tell)
    return judge_json(Pairs(reference=reference, candidate=candidate))


def judge_json(pairs: Pairs) -> Found:
    ours, theirs, items = sum(pairs.candidate), sum(pairs.reference), len(pairs.candidate)
    figures: tuple[ProbeFigure, ...] = (share("answers that parse", theirs / items, ours / items),)
    told = f"{ours} of {items} answers hold JSON that parses, {theirs} of the original's"
    if pairs.surely_worse:
        told += f": more than chance would take (p = {pairs.p_value:.4f})"
    return Found(verdict="fail" if pairs.surely_worse else "pass", summary=f"{told}.", figures=figures)


def has_json(text: str) -> bool:
    """Whether a whole JSON object or array begins at the text's first brace or bracket."""
    starts = [start for sign in "{[" if (start := text.find(sign)) >= 0]
    if not starts:
        return False
    try:
        json.JSONDecoder().raw_decode(text, min(starts))
    except ValueError:
        return False
    except RecursionError:  # nested beyond what Python's reader takes: no program reads that
        return False
    return True
