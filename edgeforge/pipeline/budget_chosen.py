"""What a budget chose for each block and why: the next smaller way to store it, and what that would have cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.pipeline.budget_options import Item
from edgeforge.planning import block_name, fused_blocks, scheme_key
from edgeforge.quantization.scheme import QuantizationScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to store a block. `loss`: predicted divergence in nats per token."""

    scheme: QuantizationScheme
    bytes: int
    loss: float

    def document(self) -> dict[str, object]:
        scheme = self.scheme
        return {
            "scheme": scheme.name,
            "group_size": scheme.group_size,
            "symmetric": scheme.symmetric,
            "bytes": self.bytes,
            "predicted_loss": self.loss,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """How a block is stored. `smaller`: of all ways that take fewer bytes the most accurate; None where there is none.

    `block`: embedding, qkv, o, gate_up, down or lm_head; `layer` is None outside the layers.
    """

    block: str
    layer: int | None
    names: tuple[str, ...]
    chosen: Way
    smaller: Way | None

    def document(self) -> dict[str, object]:
        """For programs, a block at a time."""
        return {
            "block": self.block,
            "layer": self.layer,
            "tensors": list(self.names),
            **self.chosen.document(),
            "next_smaller": None if self.smaller is None else self.smaller.document(),
        }


def chosen_of(
    architecture: LlamaArchitecture,
    items: Sequence[Item],
    losses: Sequence[Sequence[float]],
    choices: Sequence[int],
) -> tuple[Chosen, ...]:
    """Every item's choice, in their order."""
    places: Mapping[str, tuple[str, int | None]] = {
        linear.name: (block_name(linear.role), linear.layer) for block in fused_blocks(architecture) for linear in block
    }
    return tuple(
        _chosen(item, each, choice, *places.get(item.names[0], ("embedding", None)))
        for item, each, choice in zip(items, losses, choices, strict=True)
    )


def _chosen(item: Item, losses: Sequence[float], choice: int, block: str, layer: int | None) -> Chosen:
    ways = [
        Way(scheme=scheme, bytes=size, loss=loss)
        for scheme, size, loss in zip(item.schemes, item.sizes, losses, strict=True)
    ]
    smaller = [way for way in ways if way.bytes < ways[choice].bytes]
    return Chosen(
        block=block,
        layer=layer,
        names=item.names,
        chosen=ways[choice],
        smaller=min(smaller, key=lambda way: (way.loss, way.bytes), default=None),
    )


def summary(blocks: Sequence[Chosen]) -> list[dict[str, object]]:
    """For the manifest: blocks of a kind that are stored alike are one entry, with their sums."""
    kinds = list(dict.fromkeys(each.block for each in blocks))
    alike: dict[tuple[int, str], list[Chosen]] = {}
    for each in blocks:
        alike.setdefault((kinds.index(each.block), scheme_key(each.chosen.scheme)), []).append(each)
    return [_summed(alike[key]) for key in sorted(alike)]


def _summed(alike: Sequence[Chosen]) -> dict[str, object]:
    first, smaller = alike[0], [each.smaller for each in alike if each.smaller is not None]
    return {
        "block": first.block,
        "blocks": len(alike),
        **first.chosen.document(),
        **_sums([each.chosen for each in alike]),
        "next_smaller": _sums(smaller) if smaller else None,
    }


def _sums(ways: Sequence[Way]) -> dict[str, object]:
    return {"bytes": sum(way.bytes for way in ways), "predicted_loss": sum(way.loss for way in ways)}
