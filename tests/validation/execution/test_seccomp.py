"""The seccomp filter refuses what it names and nothing else, on either architecture; run here step by step."""

import errno

import pytest

from edgeforge.validation.execution.warden import seccomp

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OWN = 777
# read, write, execve, exit_group, mmap, openat, futex, clone for a thread
HARMLESS = {"x86_64": (0, 1, 59, 231, 9, 257, 202), "aarch64": (63, 64, 221, 94, 222, 56, 98)}
THREAD_FLAGS, CLONE_NEWUSER = 0x3D0F00, 0x10000000

machines = pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])


def answer(machine: str, number: int, *arguments: int, own: int | None = None, arch: int | None = None) -> int:
    """What the kernel's BPF machine returns for one system call."""
    steps = seccomp.program(machine, own)
    words = {0: number, 4: AUDIT[machine] if arch is None else arch}
    words |= {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate([*arguments, *[0] * 6][:6])}
    at, accumulator = 0, 0
    while True:
        code, yes, no, k = steps[at]
        if code == 0x06:
            return k
        if code == 0x20:
            accumulator, jump = words[k], 0
        else:
            taken = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            jump = yes if taken else no
        at += 1 + jump


@machines
@pytest.mark.parametrize("own", [None, OWN])
def test_named_calls_are_refused_and_others_are_not(machine: str, column: int, own: int | None) -> None:
    for name, numbers in seccomp.DENIED.items():
        number = numbers[column]
        assert number is None or answer(machine, number, own=own) == EPERM, name
    for number in HARMLESS[machine]:
        assert answer(machine, number, own=own) == ALLOW
    assert {n[column] for n in seccomp.DENIED.values()}.isdisjoint(HARMLESS[machine])


@machines
def test_threads_start_but_namespaces_do_not(machine: str, column: int) -> None:
    clone, clone3 = (56, 220)[column], 435
    assert answer(machine, clone, THREAD_FLAGS) == ALLOW
    assert answer(machine, clone, THREAD_FLAGS | CLONE_NEWUSER) == EPERM
    assert answer(machine, clone3) == ENOSYS


@machines
def test_signals_reach_the_program_alone_where_there_is_no_pid_namespace(machine: str, column: int) -> None:
    for number in ((62, 129)[column], (234, 131)[column], (302, 261)[column]):  # kill, tgkill, prlimit64
        assert answer(machine, number, OWN, own=OWN) == ALLOW
        assert answer(machine, number, 1, own=OWN) == EPERM
        assert answer(machine, number, 0xFFFFFFFF, own=OWN) == EPERM
        assert answer(machine, number, 1) == ALLOW
    fcntl = (72, 25)[column]
    assert answer(machine, fcntl, 1, 8, own=OWN) == EPERM  # F_SETOWN
    assert answer(machine, fcntl, 1, 2, own=OWN) == ALLOW  # F_SETFD
    prctl = (157, 167)[column]
    assert answer(machine, prctl, 1) == EPERM  # PR_SET_PDEATHSIG
    assert answer(machine, prctl, 15) == ALLOW  # PR_SET_NAME


def test_other_calling_conventions_are_no_way_round() -> None:
    assert answer("x86_64", 41, arch=0x40000003) == KILL  # int 0x80: i386's numbers
    assert answer("x86_64", 0x40000000 | 41) == EPERM  # x32's
    with pytest.raises(OSError, match="no system call numbers for riscv64"):
        seccomp.program("riscv64", None)
