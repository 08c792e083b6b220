"""docs/fidelity.md and fidelity.svg, written from the records: tables, a plot, and the notes that people wrote."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fidelity_items import ABLATION, FP8, ITEMS, PLAIN, RIVALS, SIZES, STORIES, Item, Size
from fidelity_plot import Point, Series, draw
from fidelity_records import Average, Records
from report import machine

NOTES = Path(__file__).with_name("fidelity_notes.md")
INTRODUCTION = """\
# Fidelity: what is left of a model at a size

How far a quantized model's answers are from those of the model it was made of, at equal bytes: EdgeForge's ONNX bundles
and llama.cpp's types, measured on the same tokens. Written by `python tests/benchmarks/fidelity.py`.

![Mean KL divergence against size](fidelity.svg)

- The reference is the demo model (SmolLM2-135M-Instruct) dequantized to float32 and shuffled: residual channels,
  intermediate channels and the value channels inside each head are permuted, which changes no answer and takes the
  weights off the 4-bit grid that they were published on. Each seed is another permutation.
- WikiText-2 raw test, {chunks} chunks of 512 tokens, the second half of each scored. Calibration never sees it.
- Divergence is the mean over scored tokens of KL(reference || candidate) in nats; less is better.
- Size is every byte of weights that the consumer loads: our `.onnx.data` (for a context of 512), llama.cpp's file.
- *As run* is what users get: ours through `edgeforge.runtime`, where MatMulNBits rounds activations to int8 block by
  block, llama.cpp's through llama-perplexity, whose kernels do the same. *Weights alone* is the same stored weights
  with float activations: the graph at accuracy_level 1, and llama.cpp's file dequantized to float32.
- Seeds: {seeds}. Figures are means over those that were measured, with each seed's in brackets where it says so.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Averages of what was measured."""

    records: Records
    seeds: Sequence[int]
    chunks: int

    def __call__(self, item: Item) -> Average | None:
        return self.records.average(item.name, self.seeds, min(self.chunks, item.chunks or self.chunks))


def write_document(folder: Path, records: Records, seeds: Sequence[int], chunks: int) -> None:
    """fidelity.md and fidelity.svg in `folder`; what was not measured is left out."""
    found = Found(records=records, seeds=seeds, chunks=chunks)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fidelity.svg").write_text(_plot(found), encoding="utf-8")
    introduction = INTRODUCTION.format(chunks=chunks, seeds=", ".join(map(str, seeds)))
    sections = [introduction, _sizes(found), *_tables(found), _how(found)]
    if NOTES.is_file():
        sections.insert(2, NOTES.read_text(encoding="utf-8"))
    text = "\n\n".join(section.strip() for section in sections if section)
    (folder / "fidelity.md").write_text(text + "\n", encoding="utf-8")


def _plot(found: Found) -> str:
    def points(items: Sequence[Item], label: Callable[[Item], str]) -> list[Point]:
        averages = [(item, average) for item in items if (average := found(item)) is not None]
        return [
            Point(size=average.bytes, divergence=average.divergence, label=label(item)) for item, average in averages
        ]

    def alike(table: str) -> list[Point]:
        return points([item for item in PLAIN if item.table == table], lambda item: "")

    series = [
        Series(label="EdgeForge", points=points([size.item for size in SIZES], lambda item: "")),
        Series(label="llama.cpp", points=points(RIVALS, lambda item: item.label), joined=False),
        Series(label="round-to-nearest", points=alike("rtn"), joined=False),
        Series(label="searched scales", points=alike("search"), joined=False),
    ]
    goals = [Point(size=size.most, divergence=size.goal) for size in SIZES]
    return draw(series, goals, "Mean KL divergence against size")


def _sizes(found: Found) -> str:
    header = ["size at most", "bytes", "divergence as run", "each seed", "weights alone", "perplexity"]
    header += ["same top token", "prefill / decode tok/s", "llama.cpp there", "goal", ""]
    rows = [row for size in SIZES if (row := _size_row(size, found)) is not None]
    return _section("## At four sizes", header, rows)


def _size_row(size: Size, found: Found) -> tuple[str, ...] | None:
    ours = found(size.item)
    rivals = {item.name: (item.label, average) for item in RIVALS if (average := found(item)) is not None}
    if ours is None:
        return None
    label, rival = rivals.get(size.rival, (size.rival, None))
    verdict = "goal reached" if ours.divergence <= size.goal else "**goal missed**"
    if rival is not None and ours.divergence >= rival.divergence:
        verdict = "**behind llama.cpp**"
    if ours.bytes > size.most:
        verdict = "**too large**"
    return (
        f"{size.most / 1e6:.1f} MB",
        f"{ours.bytes:,}",
        f"**{ours.divergence:.4f}** ± {ours.standard_error:.4f}",
        ", ".join(f"{value:.4f}" for value in ours.divergences),
        _figure(ours.divergence_alone),
        f"{ours.perplexity:.2f}",
        f"{ours.same_top:.1%}",
        ours.speed,
        label if rival is None else f"{label} {rival.divergence:.4f}",
        f"{size.goal:g}",
        verdict,
    )


def _tables(found: Found) -> Iterator[str]:
    by_algorithm = {name: [item for item in PLAIN if item.table == name] for name in ("rtn", "search")}
    yield _table("## llama.cpp's types", RIVALS, found)
    yield _table("## Without data: round-to-nearest, every linear stored alike", by_algorithm["rtn"], found)
    yield _table("## Without data: searched scales", by_algorithm["search"], found)
    yield _table(
        "## What each part brings: INT4 in groups of 32, symmetric, f16 graph (10 chunks)",
        ABLATION,
        found,
        seconds=True,
    )
    yield _table("## FP8 of the linears (10 chunks; engines' rounding imitated in float32)", FP8, found)
    yield _table(
        "## A model that never was quantized: stories260k, INT4\n\nTrue float32 weights, and dimensions that divide by "
        "nothing. Windows of 512 tokens of a TinyStories-style text; calibrated on what follows it.",
        STORIES,
        found,
        against_reference=True,
    )


def _table(
    title: str, items: Sequence[Item], found: Found, *, against_reference: bool = False, seconds: bool = False
) -> str:
    """`against_reference`: perplexity as a change as well. `seconds`: what the build took, and the bundle's speed."""
    rows = []
    for item in items:
        average = found(item)
        if average is None:
            continue
        change = average.perplexity / average.records[0].as_run.reference_perplexity.value - 1
        row = [
            item.label,
            f"{average.bytes:,}",
            f"{average.divergence:.4f} ± {average.standard_error:.4f}",
            _figure(average.divergence_alone),
            f"{average.perplexity:.3f}" + (f" ({change:+.1%})" if against_reference else ""),
            f"{average.same_top:.1%}",
        ]
        rows.append([*row, f"{average.seconds:.0f} s", average.speed] if seconds else row)
    header = ["", "bytes", "divergence as run", "weights alone", "perplexity", "same top token"]
    return _section(title, [*header, "built in", "prefill / decode tok/s"] if seconds else header, rows)


def _figure(divergence: float | None) -> str:
    return "" if divergence is None else f"{divergence:.4f}"


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    lines.insert(1, f"|{'---|' * len(header)}")
    return f"{title}\n\n" + "\n".join(lines)


def _how(found: Found) -> str:
    """The command of every row of ours, and what it was measured with."""
    lines, versions, perplexities = [], set[str](), set[str]()
    for item in ITEMS:
        average = found(item)
        if average is None:
            continue
        versions |= {record.version for record in average.records}
        if item.table not in ("llama.cpp", "stories") and item.chunks is None:
            perplexities |= {f"{record.as_run.reference_perplexity.value:.3f}" for record in average.records}
        if item.table != "llama.cpp":
            lines.append(f"edgeforge build {' '.join(item.arguments)}  # {item.name}")
    text = (
        "## How to get these figures\n\n    ci/peers\n    python tests/benchmarks/fidelity.py\n\n"
        f"Measured on {machine()}; with {'; '.join(sorted(versions))}. "
        f"The reference's perplexity is {', '.join(sorted(perplexities))}. The bundles, with "
        "`--model` the shuffled demo and `--context 512`:\n\n"
    )
    return text + "\n".join(f"    {line}" for line in lines)
