"""The options of a bit budget: what has to share a scheme, and what bytes each scheme takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from edgeforge.hardware import SCHEMES, Target
from edgeforge.planning import EMBEDDING, BuildPlan, block_name, fused_blocks, matrix_bytes, scale_copies
from edgeforge.quantization.scheme import SPLIT_BITS, QuantizationScheme, effective_group_size

BITS, SIZES, SYMMETRIC = (4, 6, 8), (32, 64, 128), (True, False)
SMALLEST = 16  # of groups of 4 and 8 bits, where onnxruntime's CPU kernels run them


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What has to share a scheme: a fused block, or the embedding. `names`: of its tensors; `sizes`: of the schemes."""

    names: tuple[str, ...]
    schemes: tuple[QuantizationScheme, ...]
    copies: tuple[int, ...]
    sizes: tuple[int, ...]


def items_of(plan: BuildPlan) -> list[Item]:
    """The embedding, then every fused block."""
    a, target = plan.architecture, plan.target
    # a gathered row is whole groups
    whole = (
        s for s in _schemes(plan, EMBEDDING, a.hidden_size) if s.is_float or a.hidden_size % (s.group_size or 1) == 0
    )
    items = [_item((EMBEDDING,), tuple(whole), a.vocab_size, a.hidden_size, lambda scheme: 1)]
    for block in fused_blocks(a):
        names, k = tuple(linear.name for linear in block), block[0].in_features
        copies = partial(_copies, block_name(block[0].role), k, target)
        rows = sum(linear.out_features for linear in block)
        items.append(_item(names, _schemes(plan, names[0], k), rows, k, copies))
    return items


def _copies(block: str, in_features: int, target: Target, scheme: QuantizationScheme) -> int:
    return scale_copies(block, scheme, in_features, target)


def _item(
    names: tuple[str, ...],
    schemes: tuple[QuantizationScheme, ...],
    rows: int,
    columns: int,
    copies_of: Callable[[QuantizationScheme], int],
) -> Item:
    copies = tuple(map(copies_of, schemes))
    sizes = (matrix_bytes(s, rows, columns, scale_copies=c) for s, c in zip(schemes, copies, strict=True))
    return Item(names=names, schemes=schemes, copies=copies, sizes=tuple(sizes))


def _schemes(plan: BuildPlan, name: str, in_features: int) -> tuple[QuantizationScheme, ...]:
    """The plan's own first, which may be the checkpoint's, then every other."""
    wanted = (SMALLEST, *SIZES) if plan.target.profile.kind == "cpu" else SIZES
    sizes = dict.fromkeys(effective_group_size(in_features, size) for size in wanted)
    fresh = (
        QuantizationScheme(
            name=f"w{bits}a16",
            bits=bits,
            group_size=size,
            symmetric=symmetric,
            scale_dtype=plan.target.activations,
        )
        for bits in BITS
        for size in sizes
        for symmetric in SYMMETRIC
        if plan.target.profile.kind in SCHEMES[f"w{bits}a16"].kinds
        # no gather reads codes in two parts, and no kernel for 2 bits runs such small groups
        and not (bits == SPLIT_BITS and (size == SMALLEST or name == EMBEDDING))
    )
    return tuple(dict.fromkeys((plan.schemes[name], *fresh)))
