"""What one untrusted program may use, and how it ended."""

from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["passed", "failed", "timed out", "out of memory", "killed", "too much output", "refused"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """For one program with all that it starts, except where noted.

    `seconds` of wall clock; `cpu_seconds` of processor time of each process; `memory_bytes` of address space of each
    process and of resident memory of all together; `processes` and threads at once, the program itself among them;
    `file_bytes` of one file, and of the working folder as a whole where it is private; `output_bytes` written to
    standard output and error.
    """

    seconds: float = 15.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    processes: int = 32
    file_bytes: int = 64 << 20
    output_bytes: int = 1 << 20


DEFAULT = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a program ended. `detail` is one line: the exception, the limit, the signal; empty where it passed.

    "refused" says nothing about the program: it was not run, as it could not be contained.
    """

    status: Status
    detail: str

    @property
    def passed(self) -> bool:
        return self.status == "passed"
