"""The README's table of targets, printed as Markdown: what is built for each, and how Llama 3.1 fits there.

    python tests/targets_table.py [--write README.md]

`ci/docs` writes it into README.md; tests/test_docs.py checks that it is there.
"""

import re
import sys
from pathlib import Path

from edgeforge.cli.targets import fit_text
from edgeforge.cli.text import bytes_text
from edgeforge.hardware import available_targets, load_target
from edgeforge.model.llama31 import LLAMA_3_1


def markdown() -> str:
    """The table, a row per target."""
    header = ["target", "memory", "bandwidth", "backend", "linears", "context", *LLAMA_3_1]
    rows = [header, ["---", "--:", "--:", "---", "---", *["--:"] * (1 + len(LLAMA_3_1))]]
    for name in available_targets():
        target = load_target(name)
        profile = target.profile
        cards = f"{target.cards} x " if target.cards > 1 else ""
        rows.append(
            [
                f"`{name}`",
                cards + bytes_text(profile.memory_bytes),
                f"{profile.bandwidth_bytes_per_s / 1e9:,.0f} GB/s",
                target.backend,
                target.scheme,
                f"{target.context:,}",
                *(fit_text(target, shape) for shape in LLAMA_3_1.values()),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(path: Path) -> None:
    """Put the table between the document's two comments."""
    between = re.compile(r"(?<=<!-- targets: written by ci/docs -->\n).*(?=<!-- /targets -->)", re.DOTALL)
    text, found = between.subn(markdown() + "\n", path.read_text(encoding="utf-8"))
    assert found == 1, f"{path} has no place for the table"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))
    else:
        print(markdown())
