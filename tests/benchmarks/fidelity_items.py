"""What is measured: every recipe of ours and every type of llama.cpp's, by table.

Whoever finds a better recipe for a size changes it here, in SIZES.
"""

from dataclasses import dataclass
from typing import Literal

Table = Literal["sizes", "llama.cpp", "rtn", "search", "ablation", "fp8", "stories"]

CPU = ("--target", "cpu")
F16 = "cpu-f16.toml"  # the target file beside this one: scales in half the bytes
FEW_CHUNKS = 10  # where rows are compared with one another only
TEXT = "{calibration}"  # in arguments: a file of calibration text that belongs to the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing to measure. `arguments` are those of `edgeforge build`, or of llama-quantize."""

    name: str
    label: str
    table: Table
    arguments: tuple[str, ...]
    chunks: int | None = None  # at most, of WikiText-2's
    all_seeds: bool = False  # else the first
    alone: bool = True  # whether the weights are measured alone too


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A row of the table that the project is judged by: llama.cpp's best of at most `most` bytes, and ours."""

    most: int
    rival: str
    goal: float
    item: Item


def _rival(type_name: str, imatrix: str = "") -> Item:
    arguments = (type_name, imatrix) if imatrix else (type_name,)
    return Item(
        name="-".join(arguments),
        label=" + ".join(arguments),
        table="llama.cpp",
        arguments=arguments,
        all_seeds=any(size.rival == "-".join(arguments) for size in SIZES),
    )


def _auto(most: int, target: str, algorithm: str, table: Table) -> Item:
    """Bits, groups and zero points as `most` bytes buy them."""
    words = {F16: "f16", "cpu": "f32"}[target]
    return Item(
        name=f"auto-{most / 1e6:.1f}-{words}-{algorithm}",
        label=f"allocation within {most / 1e6:.1f} MB, {algorithm}, {words} graph",
        table=table,
        arguments=("--target", target, "--scheme", "auto", "--max-bytes", str(most), "--algorithm", algorithm),
        chunks=FEW_CHUNKS if table == "ablation" else None,
        all_seeds=table == "sizes",
    )


def _size(most: int, rival: str, goal: float, target: str, algorithm: str) -> Size:
    return Size(most=most, rival=rival, goal=goal, item=_auto(most, target, algorithm, "sizes"))


def _alike(algorithm: Literal["rtn", "search"], scheme: str, group: int, zero: str) -> Item:
    """Every linear stored alike, by an algorithm that needs no data."""
    return Item(
        name=f"{algorithm}-{scheme}-{group}-{zero}",
        label=f"{scheme} g{group} {zero}",
        table=algorithm,
        arguments=(*CPU, "--algorithm", algorithm, "--scheme", scheme, "--group-size", str(group), f"--{zero}"),
        alone=False,
    )


def _step(name: str, label: str, *arguments: str) -> Item:
    """One line of the ablation: the same storage, another way to find the codes."""
    storage = ("--scheme", "w4a16", "--group-size", "32", "--symmetric")
    return Item(
        name=f"step-{name}",
        label=label,
        table="ablation",
        arguments=("--target", F16, *storage, *arguments),
        chunks=FEW_CHUNKS,
    )


def _fp8(name: str, label: str, *arguments: str) -> Item:
    # The cache is no part of the question: in FP8, as the target has it, it would cost something of its own.
    arguments = ("--target", "l40s", "--kv-cache", "bf16", *arguments)
    return Item(name=f"fp8-{name}", label=label, table="fp8", arguments=arguments, chunks=FEW_CHUNKS)


def _stories(group: int, algorithm: str, *more: str) -> Item:
    arguments = (*CPU, "--scheme", "w4a16", "--group-size", str(group), "--asymmetric", "--algorithm", algorithm)
    return Item(
        name=f"stories-{group}-{algorithm}",
        label=f"groups of {group}, {algorithm}",
        table="stories",
        arguments=(*arguments, *more),
    )


SIZES = (
    _size(92_000_000, "Q4_0-imatrix", 0.10, F16, "gptq"),
    _size(105_500_000, "Q4_K_M-imatrix", 0.030, F16, "awq+gptq"),
    _size(112_200_000, "Q5_K_M", 0.020, F16, "awq+gptq"),
    _size(144_900_000, "Q8_0", 0.0035, F16, "awq+gptq"),
)
RIVALS = (
    _rival("Q4_0"),
    _rival("Q4_0", "imatrix"),
    _rival("Q4_1"),
    _rival("Q4_K_M"),
    _rival("Q4_K_M", "imatrix"),
    _rival("Q5_K_M"),
    _rival("Q5_K_M", "imatrix"),
    _rival("Q6_K"),
    _rival("Q8_0"),
)
PLAIN = tuple(
    _alike(algorithm, scheme, group, zero)
    for algorithm in ("rtn", "search")
    for scheme, group, zero in (
        ("w4a16", 128, "asymmetric"),
        ("w4a16", 32, "symmetric"),
        ("w4a16", 32, "asymmetric"),
        ("w8a16", 32, "symmetric"),
    )
)
ABLATION = (
    _step("rtn", "round-to-nearest", "--algorithm", "rtn"),
    _step("search", "searched scales", "--algorithm", "search"),
    _step("awq", "AWQ", "--algorithm", "awq"),
    _step("gptq", "GPTQ", "--algorithm", "gptq"),
    _step("awq-gptq", "AWQ + GPTQ", "--algorithm", "awq+gptq"),
    _step("rotation-rtn", "rotation + round-to-nearest", "--algorithm", "rtn", "--rotate"),
    _step("rotation", "rotation + GPTQ", "--algorithm", "gptq", "--rotate"),
    _auto(92_000_000, F16, "search", "ablation"),
    _auto(92_000_000, "cpu", "gptq", "ablation"),
)
FP8 = tuple(
    _fp8(f"{name}-{algorithm}", f"{label}, {algorithm}", *storage, "--algorithm", algorithm)
    for algorithm in ("rtn", "gptq")
    for name, label, *storage in (
        ("channel", "per channel, dynamic activations", "--scheme", "fp8-dynamic", "--backend", "compressed-tensors"),
        ("tensor", "per tensor, static activations", "--scheme", "fp8", "--backend", "modelopt"),
    )
)
STORIES = tuple(
    _stories(group, algorithm, *more)
    for group in (32, 16)
    for algorithm, *more in (("rtn",), ("search",), ("gptq", "--calibration", TEXT))
)
ITEMS = (*(size.item for size in SIZES), *RIVALS, *ABLATION, *PLAIN, *FP8, *STORIES)
