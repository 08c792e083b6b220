"""System calls that Python 3.11 has no function for. Each raises OSError where the kernel refuses.

Numbers that are the same on every architecture are from include/uapi/asm-generic/unistd.h, flags from the uapi headers.
"""

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 22, 36, 38

_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: "int | ctypes.Array[ctypes.c_char] | ctypes.Structure") -> int:
    """The system call, its integers as longs; buffers and structures are passed by reference."""
    words = [ctypes.c_long(a) if isinstance(a, int) else ctypes.byref(a) for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words), f"system call {number}")


def prctl(option: int, *arguments: "int | ctypes.Structure") -> int:
    """prctl(2); a structure is passed by reference, missing arguments are 0."""
    words = [ctypes.c_ulong(a) if isinstance(a, int) else ctypes.byref(a) for a in arguments]
    words += [ctypes.c_ulong(0)] * (4 - len(words))
    return _checked(_libc.prctl(ctypes.c_int(option), *words), f"prctl {option}")


def unshare(flags: int) -> None:
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def set_host_name(name: str) -> None:
    encoded = name.encode()
    _checked(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), "sethostname")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    options = None if data is None else data.encode()
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), options), f"mount on {target}")


def read_only(target: str, *, no_devices: bool = True) -> None:
    """Makes a mount and all below it read-only, without set-user-id programs (mount_setattr(2), Linux 5.12)."""
    flags = MS_RDONLY | MS_NOSUID | (MS_NODEV if no_devices else 0)  # MOUNT_ATTR_* have the values of MS_*

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]

    path = ctypes.create_string_buffer(os.fsencode(target))
    attributes = Attributes(flags, 0, 0, 0)
    syscall(_MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))


def enter_root(folder: str) -> None:
    """Makes a mount point the root folder, and lets go of the old one (pivot_root(2), "pivot_root(".", ".")")."""
    os.chdir(folder)
    dot = ctypes.c_char_p(b".")
    number = {"x86_64": 155, "aarch64": 41}.get(os.uname().machine)
    if number is None:
        raise OSError(f"pivot_root has no known number on {os.uname().machine}")
    _checked(_libc.syscall(ctypes.c_long(number), dot, dot), "pivot_root")
    _checked(_libc.umount2(dot, ctypes.c_int(MNT_DETACH)), "umount of the old root")
    os.chdir("/")
