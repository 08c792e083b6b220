"""How much memory this process has resident, now and at most."""

import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """The most memory this process ever had resident; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory_bytes() -> int:
    """What is resident now; the peak where only that is known."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (ImportError, OSError):
        return peak_memory_bytes()
    return pages * resource.getpagesize()
