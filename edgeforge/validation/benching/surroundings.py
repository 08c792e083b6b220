"""Who else used the machine while something was measured, as Linux counts it (proc(5), cgroups(7))."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edgeforge.validation.benching.records import Surroundings

PROC_STAT = Path("/proc/stat")
CPUS = Path("/sys/devices/system/cpu")
CGROUP_STAT = Path("/sys/fs/cgroup/cpu.stat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Counters at one moment. Seconds over all processors; None where the system does not count."""

    all_seconds: float | None
    busy_seconds: float | None
    stolen_seconds: float | None
    own_seconds: float
    throttle_events: int | None
    wall_seconds: float

    @classmethod
    def now(cls) -> Self:
        counted = _processor_seconds()
        everything, busy, stolen = counted or (None, None, None)
        own = os.times()
        return cls(
            all_seconds=everything,
            busy_seconds=busy,
            stolen_seconds=stolen,
            own_seconds=own.user + own.system,
            throttle_events=_throttle_events(),
            wall_seconds=time.monotonic(),
        )


def load_average() -> float | None:
    """Processes that wanted to run, over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def between(before: Moment, after: Moment, load: float | None) -> Surroundings:
    """What happened from one moment to the other; `load` is from before."""
    throttled = None
    if before.throttle_events is not None and after.throttle_events is not None:
        throttled = after.throttle_events > before.throttle_events
    others, stolen = _shares(before, after)
    return Surroundings(
        load_average=load,
        others_share=others,
        stolen_share=stolen,
        throttled=throttled,
        frequency_share=frequency_share(),
    )


def _shares(before: Moment, after: Moment) -> tuple[float | None, float | None]:
    if (
        before.all_seconds is None
        or before.busy_seconds is None
        or before.stolen_seconds is None
        or after.all_seconds is None
        or after.busy_seconds is None
        or after.stolen_seconds is None
    ):
        return None, None
    everything = after.all_seconds - before.all_seconds
    if everything <= 0:
        return None, None
    busy = after.busy_seconds - before.busy_seconds
    own = after.own_seconds - before.own_seconds
    # Over a moment, the ticks of a process and those of the machine need not agree.
    return min(max(busy - own, 0.0) / everything, 1.0), (after.stolen_seconds - before.stolen_seconds) / everything


def frequency_share(root: Path = CPUS) -> float | None:
    """The slowest processor's frequency over its highest."""
    shares = []
    for folder in root.glob("cpu[0-9]*/cpufreq"):
        current, highest = _number(folder / "scaling_cur_freq"), _number(folder / "cpuinfo_max_freq")
        if current and highest:
            shares.append(current / highest)
    return min(shares, default=None)


def _processor_seconds() -> tuple[float, float, float] | None:
    """All, busy and stolen seconds since the start; busy is user, nice, system, irq and softirq."""
    try:
        first = PROC_STAT.read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in first.split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq
    return (busy + idle + iowait + steal) / tick, busy / tick, steal / tick


def _throttle_events(root: Path = CPUS) -> int | None:
    """Times that a processor was slowed by its heat, or this container by its quota."""
    counts = [_number(path) for path in root.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    try:
        lines = CGROUP_STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    counts += [int(line.split()[1]) for line in lines if line.startswith("nr_throttled ")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
