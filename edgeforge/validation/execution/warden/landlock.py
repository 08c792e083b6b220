"""Landlock: file and TCP access by paths, enforced by the kernel without any privilege (Linux 5.13).

Under a private root it is a second wall; where namespaces are closed to us it is the only one around files.
Flags are from include/uapi/linux/landlock.h; each version of the interface adds some.
"""

import ctypes
import os
import stat

from . import linux

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_FIRST = (1 << 13) - 1
_ALL_NET = 3  # bind and connect by TCP
_ALL_SCOPED = 3  # abstract UNIX sockets and signals to processes outside


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """The interface's version, 1 or more. OSError where the kernel has none."""
    return linux.syscall(_CREATE_RULESET, 0, 0, 1)


def restrict(readable: list[str], devices: list[str], work: str) -> None:
    """From now on: reads and executes beneath `readable`, reads and writes `devices`, does anything beneath `work`."""
    abi = version()
    files = _FIRST
    files |= 1 << 13 if abi >= 2 else 0  # moving between folders
    files |= _TRUNCATE if abi >= 3 else 0
    files |= _IOCTL if abi >= 5 else 0
    rules = _Ruleset(files, _ALL_NET if abi >= 4 else 0, _ALL_SCOPED if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = linux.syscall(_CREATE_RULESET, rules, size, 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ)
        for path in devices:
            _allow(ruleset, path, _READ_FILE | _WRITE_FILE)
        _allow(ruleset, work, files & ~_IOCTL)
        linux.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            access &= _FILE_ONLY
        linux.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, _Beneath(access, parent), 0)
    finally:
        os.close(parent)
