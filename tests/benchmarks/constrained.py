"""What constrained output costs, and whether it keeps its word: a hundred answers under five JSON Schemas.

    python tests/benchmarks/constrained.py artifacts/demo-cpu [--answers 100] [--max-new-tokens 200]

Each answer is drawn at temperature 0.8 with its own seed, held to its schema and to its limit (`ending.EndingGuide`).
To compare, every fourth is asked for again, held to its schema only, and once more, free. A JSON Schema validator that
is not ours, jsonschema, judges. A grammar that allows any text must give the greedy answer that there is without one.
Prints one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jsonschema import Draft202012Validator, ValidationError
from numpy.typing import NDArray

from edgeforge import runtime
from edgeforge.runtime import guidance
from edgeforge.runtime.constraint import Constraint
from edgeforge.runtime.ending import EndingGuide
from edgeforge.runtime.model import Model
from edgeforge.runtime.stream import Chunk

NAME = {"type": "string", "minLength": 1}


def record(**properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TASKS: Mapping[str, tuple[str, dict[str, object]]] = {
    "nested": (
        "Describe a film.",
        record(
            title=NAME,
            year={"type": "integer", "minimum": 1900, "maximum": 2100},
            director=record(first=NAME, last=NAME),
        ),
    ),
    "enums": (
        "What is the mood of this review: the food was cold, but the waiter was kind?",
        record(mood={"enum": ["good", "bad", "mixed"]}, sure={"type": "boolean"}, why={"type": "string"}),
    ),
    "arrays": (
        "Give a recipe for pancakes.",
        record(
            ingredients={
                "type": "array",
                "items": record(name=NAME, grams={"type": "number", "minimum": 0}),
                "minItems": 1,
            },
            steps={"type": "array", "items": {"type": "string"}, "maxItems": 5},
        ),
    ),
    "patterns": (
        "Invent an order in a shop.",
        record(
            number={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
            mail={"type": "string", "format": "email"},
            day={"type": "string", "pattern": "^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$"},
            total={"type": "number"},
        ),
    ),
    "references": (
        "Draw a family tree.",
        {
            "$defs": {
                "person": record(
                    name=NAME, children={"type": "array", "items": {"$ref": "#/$defs/person"}, "maxItems": 3}
                )
            },
            "$ref": "#/$defs/person",
        },
    ),
}
ANY_TEXT = "start: /(?s:.*)/"


@dataclass(slots=True)
class Timed:
    """A constraint, and how long each of its calls took, in this thread's own time on the processor."""

    constraint: Constraint
    masks_s: list[float] = field(default_factory=list)
    accepts_s: list[float] = field(default_factory=list)

    def mask(self) -> NDArray[np.bool_]:
        start = time.thread_time()
        mask = self.constraint.mask()
        self.masks_s.append(time.thread_time() - start)
        return mask

    def accept(self, token: int) -> None:
        start = time.thread_time()
        self.constraint.accept(token)
        self.accepts_s.append(time.thread_time() - start)

    @property
    def finished(self) -> bool:
        return self.constraint.finished


@dataclass(slots=True)
class Tally:
    """Of answers to one kind of request."""

    answers: int = 0
    satisfied: int = 0
    tokens: int = 0
    decode_s: float = 0.0
    masks_s: list[float] = field(default_factory=list)
    accepts_s: list[float] = field(default_factory=list)

    def add(self, chunks: list[Chunk], schema: dict[str, object], timed: Timed | None) -> None:
        last = chunks[-1]
        assert last.usage is not None and last.timings is not None
        self.answers += 1
        self.satisfied += satisfies("".join(chunk.text for chunk in chunks), schema)
        self.tokens += last.usage.completion_tokens
        self.decode_s += last.timings.decode_ms / 1000
        if timed is not None:
            self.masks_s += timed.masks_s
            self.accepts_s += timed.accepts_s

    def document(self) -> dict[str, object]:
        spent: dict[str, object] = {}
        if self.masks_s:
            per_token = statistics.mean(self.masks_s) + statistics.mean(self.accepts_s)
            spent = {
                "mask_us_median": round(1e6 * statistics.median(self.masks_s), 1),
                "mask_us_p99": round(1e6 * float(np.quantile(self.masks_s, 0.99)), 1),
                "mask_and_accept_us_mean": round(1e6 * per_token, 1),
                "share_of_decode": round(sum(self.masks_s + self.accepts_s) / self.decode_s, 4),
            }
        return {
            "answers": self.answers,
            "satisfied": self.satisfied,
            "tokens": self.tokens,
            "decode_tokens_per_s": round(self.tokens / self.decode_s, 1),
            **spent,
        }


def satisfies(text: str, schema: dict[str, object]) -> bool:
    try:
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(json.loads(text))
    except (ValueError, ValidationError):
        return False
    return True


def measure(model: Model, answers: int, max_new_tokens: int) -> dict[str, object]:
    tallies = {"held to schema and limit": Tally(), "held to schema": Tally(), "free": Tally()}
    guidance.json_object(model)  # the vocabulary is read once
    for kind, tally in tallies.items():
        for number in range(0, answers, 1 if "limit" in kind else 4):
            question, schema = list(TASKS.values())[number % len(TASKS)]
            ids = model.chat_ids([{"role": "user", "content": f"{question} Answer in JSON."}])
            guide = None if kind == "free" else guidance.json_schema(model, schema)
            held = EndingGuide(guide, max_new_tokens) if guide is not None and "limit" in kind else guide
            timed = None if held is None else Timed(held)
            chunks = model.generate(ids, max_new_tokens=max_new_tokens, temperature=0.8, seed=number, constraint=timed)
            tally.add(list(chunks), schema, timed)
            print(f"{kind}: {tally.satisfied} of {tally.answers}", file=sys.stderr)
    return {kind: tally.document() for kind, tally in tallies.items()}


def same_when_free(model: Model, max_new_tokens: int) -> dict[str, object]:
    """Greedy answers with a grammar that rules out nothing, and without one."""
    same = 0
    for question, _ in TASKS.values():
        ids = model.chat_ids([{"role": "user", "content": question}])
        texts = {
            "".join(
                chunk.text
                for chunk in model.generate(ids, max_new_tokens=max_new_tokens, temperature=0, constraint=guide)
            )
            for guide in (None, guidance.grammar(model, ANY_TEXT))
        }
        same += len(texts) == 1
    return {"prompts": len(TASKS), "same_text": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    document = measure(runtime.load(options.bundle, threads=options.threads), options.answers, options.max_new_tokens)
    exact = runtime.load(options.bundle, threads=options.threads, exact=True)
    document["grammar of any text"] = same_when_free(exact, options.max_new_tokens)
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
