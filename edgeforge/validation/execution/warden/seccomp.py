"""A seccomp filter: system calls that no test of a program needs, and that reach past it, fail with EPERM.

A classic BPF program over struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]} (include/uapi/linux/seccomp.h).
It lets everything through but what is named, as an interpreter's own calls differ from one libc to the next.
Numbers are from arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import errno
import os

from . import linux

_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16
_X32 = 0x40000000

_X86_64, _AARCH64 = 0, 1
_ARCHES = {"x86_64": (_X86_64, 0xC000003E), "aarch64": (_AARCH64, 0xC00000B7)}

# name: (x86_64, aarch64), None where the architecture lacks it
DENIED: dict[str, tuple[int, int | None]] = {
    # networks, and memory that no limit counts
    "socket": (41, 198),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # large surfaces of the kernel
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    # the machine itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "personality": (135, 92),
}
# Without a PID namespace these reach processes of the same user.
SIGNALS: dict[str, tuple[int, int]] = {
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "setpriority": (141, 140),
    "tkill": (200, 130),
}
_CLONE, _CLONE3, _PRCTL, _PRLIMIT, _FCNTL = (56, 220), (435, 435), (157, 167), (302, 261), (72, 25)
_KILLS = ((62, 129), (234, 131))  # kill, tgkill: the process comes first
_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag of clone(2)
_OWNER_COMMANDS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: signals by another way


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction))]


def program(machine: str, own: int | None) -> list[tuple[int, int, int, int]]:
    """The filter as (code, jump if true, jump if false, k). `own`: the only process to be signalled, None for any.

    OSError for a machine whose numbers are not known.
    """
    if machine not in _ARCHES:
        raise OSError(f"no system call numbers for {machine}")
    column, arch = _ARCHES[machine]
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    code = [(_LOAD, 0, 0, _ARCH), (_JUMP_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        code += [(_JUMP_ABOVE, 0, 1, _X32), refuse]
    named = list(DENIED.values()) + (list(SIGNALS.values()) if own is not None else [])
    for number in (pair[column] for pair in named):
        if number is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), refuse]
    # libc falls back to clone, whose flags can be read
    code += [(_JUMP_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    code += _argument(_CLONE[column], 0, [(_JUMP_ANY_BIT, 0, 1, _NAMESPACES), refuse])
    code += _argument(_PRCTL[column], 0, _each((linux.PR_SET_PDEATHSIG, linux.PR_SET_CHILD_SUBREAPER)))
    if own is not None:
        code += _argument(_FCNTL[column], 1, _each(_OWNER_COMMANDS))
        for pair in (*_KILLS, _PRLIMIT):
            allowed = [own, 0] if pair is _PRLIMIT else [own]
            code += _argument(pair[column], 0, _only(allowed))
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _argument(number: int, index: int, checks: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Checks of the low half of one argument of one call; past them the call is allowed."""
    body = [(_LOAD, 0, 0, _ARGUMENT + 8 * index), *checks, (_RETURN, 0, 0, _ALLOW)]
    return [(_JUMP_EQUAL, 0, len(body), number), *body]


def _each(values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    return [step for value in values for step in ((_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ERRNO | errno.EPERM))]


def _only(values: list[int]) -> list[tuple[int, int, int, int]]:
    jumps = [(_JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [*jumps, (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


def install(own: int | None) -> None:
    """Puts the filter over this process and all it will start. Needs PR_SET_NO_NEW_PRIVS before."""
    steps = program(os.uname().machine, own)
    instructions = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    filter_ = _Program(len(steps), ctypes.cast(instructions, ctypes.POINTER(_Instruction)))
    linux.prctl(linux.PR_SET_SECCOMP, 2, filter_)
