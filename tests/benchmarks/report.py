"""What the benchmarks found, as markdown tables for a README. No assertion about time unless it is asked for."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """Rows by table title, in the order they came."""

    tables: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def row(self, title: str, cells: Mapping[str, str]) -> None:
        self.tables.setdefault(title, []).append(cells)

    def at_least(self, figure: str, measured: float, target: float) -> None:
        """A ratio to reach."""
        self._target(figure, f"{measured:.2f}x", f">= {target:g}x", reached=measured >= target)

    def at_most(self, figure: str, measured: float, target: float, unit: str) -> None:
        """A cost to stay under."""
        self._target(figure, f"{measured:,.2f} {unit}", f"< {target:g} {unit}", reached=measured < target)

    def _target(self, figure: str, measured: str, target: str, *, reached: bool) -> None:
        row = {"figure": figure, "measured": measured, "to reach": target, "": "reached" if reached else "MISSED"}
        self.row("Targets", row)
        if not reached:
            self.missed.append(f"{figure}: {measured}, to reach {target}")

    def markdown(self) -> str:
        parts = [machine()]
        for title, rows in self.tables.items():
            header = list(rows[0])
            lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
            lines += [f"| {' | '.join(row.get(name, '') for name in header)} |" for row in rows]
            parts.append(f"{title}:\n\n" + "\n".join(lines))
        return "\n\n".join(parts)


def machine() -> str:
    """The processor and its extensions that matter here."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            facts = dict(line.split(":", 1) for line in lines if ":" in line)
        facts = {name.strip(): value.strip() for name, value in facts.items()}
        model, flags = facts.get("model name", model), set(facts.get("flags", "").split())
    except OSError:
        pass
    extensions = [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if name in flags]
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {' '.join(extensions)}, Python {platform.python_version()}"
