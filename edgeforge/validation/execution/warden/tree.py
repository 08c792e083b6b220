"""A process and all that descend from it, through /proc: their memory, and their end."""

import os
import signal
import time

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def descendants(root: int) -> list[int]:
    """The children of a process, theirs, and so on. Orphans count where `root` is a subreaper or a namespace's init."""
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = _children(waiting.pop())
        found += below
        waiting += below
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                children += map(int, file.read().split())
    except FileNotFoundError:
        # The process is gone, or the kernel has no list of children (CONFIG_PROC_CHILDREN).
        return children or _children_by_scan(pid)
    except OSError:
        return children
    return children


def _children_by_scan(parent: int) -> list[int]:
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(pid) == parent]


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def memory_bytes(pids: list[int]) -> int:
    """What is resident, added up; pages that processes share count once for each."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                total += int(file.read().split()[1])
        except (OSError, IndexError):
            continue
    return total * PAGE_BYTES


def end(seconds: float = 10.0) -> bool:
    """Kills whatever descends from this process, which must be a subreaper, and reaps it. False if something stays.

    Stopped first, then killed: else a fork bomb's survivors fill the places of the killed.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        _reap()
        living = descendants(os.getpid())
        if not living:
            return True
        stopped: set[int] = set()
        while not stopped.issuperset(living) and time.monotonic() < deadline:
            for pid in living:
                _signal(pid, signal.SIGSTOP)
            stopped.update(living)
            living = descendants(os.getpid())
        for pid in stopped:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.001)
    return False


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return
