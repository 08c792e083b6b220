"""`--scheme auto` on the command line: its budget, and a table of what was chosen and why."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeforge.cli.text import bytes_text, table
from edgeforge.errors import UsageError

if TYPE_CHECKING:
    from edgeforge.pipeline.budget import Budget, Spent

BLOCKS = {"qkv": "query, key, value", "o": "output", "gate_up": "gate, up", "lm_head": "output head"}
HEADERS = ("scheme", "blocks", "stored", "loss", "smaller", "loss then")
WHY = """\
  Losses add up to the predicted divergence. `smaller` is the most accurate way to store the same blocks in fewer
  bytes: a byte saved there would have cost more than the bytes that were saved elsewhere."""


def budget_of(scheme: str | None, max_bytes: int | None, max_divergence: float | None) -> "Budget | None":
    """What --scheme auto has to spend; None for another scheme. UsageError where the options do not go together."""
    if scheme != "auto":
        if max_bytes is not None or max_divergence is not None:
            raise UsageError("--max-bytes and --max-divergence are for --scheme auto", hint="add --scheme auto")
        return None
    from edgeforge.pipeline.budget import Budget

    return Budget(max_bytes=max_bytes, max_divergence=max_divergence)


def allocation_text(told: Mapping[str, object], *, tied: bool) -> str:
    """The table of what was chosen, as `Spent.document` tells it. `tied`: the embedding is the output head too."""
    rows, before = [], None
    for entry in _entries(told, "chosen"):
        block = _block(entry["block"], tied=tied)
        rows.append(["  " + ("" if block == before else block), *_cells(entry, f"{entry['blocks']:,}")])
        before = block
    return table(["  Chosen", *HEADERS], rows, right=frozenset({2, 3, 4, 5, 6})) + "\n\n" + WHY


def blocks_text(told: Mapping[str, object], *, tied: bool) -> str:
    """A line for every block, as `allocation_document` tells them."""
    rows = [
        [
            "  " + _block(entry["block"], tied=tied),
            *_cells(entry, "" if entry["layer"] is None else str(entry["layer"])),
        ]
        for entry in _entries(told, "blocks")
    ]
    return table(["  Block", HEADERS[0], "layer", *HEADERS[2:]], rows, right=frozenset({2, 3, 4, 5, 6}))


def allocation_document(spent: "Spent") -> dict[str, object]:
    """What the manifest will say of it, and every block."""
    return {**spent.document(), "blocks": [block.document() for block in spent.blocks]}


def allocation_fields(told: Mapping[str, object]) -> list[tuple[str, str]]:
    """The budget, what was bought for it, and how much better any other choice can be."""
    size, divergence = told["weights_bytes"], told["predicted_divergence"]
    if "max_bytes" in told:
        limit = f"at most {told['max_bytes']:,} bytes"
        best = f"none within the budget has less than {told['predicted_divergence_bound']:.4g}"
    else:
        limit = f"a divergence of at most {told['max_divergence']:g}"
        best = f"none within the budget takes less than {told['weights_bytes_bound']:,} bytes"
    return [
        ("budget", limit),
        ("weights", f"{size:,} bytes"),
        ("predicted", f"a divergence of {divergence:.4g} nats per token; {best}"),
    ]


def _entries(told: Mapping[str, object], key: str) -> list[dict[str, Any]]:
    found = told.get(key)
    return found if isinstance(found, list) else []


def _block(word: str, *, tied: bool) -> str:
    if word == "embedding" and tied:
        return "embedding and output head"
    return BLOCKS.get(word, word)


def _cells(entry: Mapping[str, Any], second: str) -> list[str]:
    smaller = entry["next_smaller"]
    return [
        _scheme(entry),
        second,
        bytes_text(entry["bytes"]),
        f"{entry['predicted_loss']:.3g}",
        *(("", "") if smaller is None else (bytes_text(smaller["bytes"]), f"{smaller['predicted_loss']:.3g}")),
    ]


def _scheme(way: Mapping[str, Any]) -> str:
    """`w4a16, groups of 32, zero points`"""
    if way["group_size"] is None:
        return str(way["scheme"])
    return f"{way['scheme']}, groups of {way['group_size']}" + ("" if way["symmetric"] else ", zero points")
