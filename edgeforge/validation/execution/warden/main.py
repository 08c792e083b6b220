"""The warden: one request, one untrusted program, one answer on standard output.

The answer is three lines: a status (`outcome.Status`), a detail, and the layers in force, separated by commas.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Callable

from . import keeper, linux, tree
from .request import Layers, Refused, Request

LOOK_EVERY_SECONDS = 0.05  # at memory and the clock
SETUP_SECONDS = 20.0
REPORT_BYTES = 4096
NONCE_BYTES = 32
CHUNK = 1 << 16


def main() -> None:
    request = Request(sys.argv[1:])
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop(request.folder))
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(request.owner):
        return
    source = sys.stdin.buffer.read()
    layers = Layers(request)
    try:
        status, detail, names = Watch(request, layers, source).outcome()
    except (Refused, OSError) as error:
        status, detail, names = "refused", str(error), []
    if not tree.end():
        status, detail = "refused", "a process of the program could not be ended"
    sys.stdout.write(f"{status}\n{clean(detail)}\n{','.join(names)}\n")


def stop(folder: str) -> Callable[[int, object], None]:
    """What to do when nobody waits for the answer any more: end the tree, the empty folder and this process."""

    def on_signal(number: int, frame: object) -> None:
        tree.end()
        try:
            os.rmdir(folder)
        finally:
            os._exit(1)

    return on_signal


def clean(text: str) -> str:
    """One line of at most 300 printable characters."""
    return "".join(c if c.isprintable() else " " for c in text[:300]).strip()


def own_user() -> int:
    """The number of a user whom nobody else is, so that its processes can be counted.

    Of the range that systemd keeps for such users (61184 to 65519, systemd's UIDS-GIDS.md). Wardens that live at the
    same time differ in their process ids, hence in this.
    """
    return 61184 + os.getpid() % (65519 - 61184 + 1)


def open_namespaces(layers: Layers, user: int) -> None:
    """Those that need to be open before the keeper is forked. Root needs no user namespace: it becomes `user` later."""
    if os.geteuid() != 0:
        real, group = os.geteuid(), os.getegid()

        def become() -> None:
            linux.unshare(linux.CLONE_NEWUSER)
            for name, line in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {real} 1"),
                ("gid_map", f"{user} {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(line)

        layers.put("userns", become)
    layers.unshare("pid", linux.CLONE_NEWPID)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


class Watch:
    """One program from its start to its end: reads what it writes, and looks at its time and memory."""

    def __init__(self, request: Request, layers: Layers, source: bytes) -> None:
        self._request = request
        self._nonce = os.urandom(NONCE_BYTES)
        self._reason: tuple[str, str] | None = None
        self._setup, self._report, self._exit, self._output = b"", b"", b"", 0
        user = own_user()
        open_namespaces(layers, user)
        pipes = {name: os.pipe() for name in ("setup", "report", "exit", "output")}
        ends = {name: pipe[1] for name, pipe in pipes.items()}
        ends["payload"] = _payload(self._nonce + source)
        self._keeper = keeper.start(request, layers, user, ends)
        for end in ends.values():
            os.close(end)
        read: dict[str, Callable[[bytes], None]] = {
            "setup": self._on_setup,
            "report": self._on_report,
            "exit": self._on_exit,
            "output": self._on_output,
        }
        self._open = {pipes[name][0]: on_data for name, on_data in read.items()}
        self._exit_pipe = pipes["exit"][0]
        self._deadline = time.monotonic() + SETUP_SECONDS

    def outcome(self) -> tuple[str, str, list[str]]:
        """Status, detail, and the layers in force."""
        poll = select.poll()
        for pipe in self._open:
            poll.register(pipe, select.POLLIN)
        looked = time.monotonic()
        # The keeper alone holds the exit pipe's other end: it is gone when that closes.
        while self._exit_pipe in self._open and self._reason is None:
            for pipe, _ in poll.poll(LOOK_EVERY_SECONDS * 1000):
                self._take(pipe, poll)
            now = time.monotonic()
            if now - looked >= LOOK_EVERY_SECONDS:
                looked = now
                self._look(now)
        self._end()
        for pipe in list(self._open):
            self._drain(pipe)
        return self._judge()

    def _take(self, pipe: int, poll: select.poll) -> None:
        data = os.read(pipe, CHUNK)
        if data:
            self._open[pipe](data)
        else:
            poll.unregister(pipe)
            del self._open[pipe]

    def _drain(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        try:
            self._open[pipe](os.read(pipe, CHUNK))
        except BlockingIOError:
            return

    def _on_setup(self, data: bytes) -> None:
        self._setup += data
        self._deadline = time.monotonic() + self._request.seconds

    def _on_report(self, data: bytes) -> None:
        self._report = (self._report + data)[:REPORT_BYTES]

    def _on_exit(self, data: bytes) -> None:
        self._exit += data

    def _on_output(self, data: bytes) -> None:
        self._output += len(data)
        if self._output > self._request.output:
            self._reason = ("too much output", f"more than {self._request.output} bytes")

    def _look(self, now: float) -> None:
        if now > self._deadline:
            self._reason = ("timed out", f"not done after {self._request.seconds:g} s")
        elif tree.memory_bytes(tree.descendants(self._keeper)) > self._request.memory:
            self._reason = ("out of memory", f"its processes hold more than {self._request.memory} bytes")

    def _end(self) -> None:
        try:
            os.kill(self._keeper, signal.SIGKILL)
        except ProcessLookupError:
            return
        tree.end()

    def _judge(self) -> tuple[str, str, list[str]]:
        ready, _, refusal = self._setup.decode(errors="replace").rpartition("\n")
        if refusal or not ready:
            reason = self._reason[1] if self._reason else refusal.removeprefix("refused ")
            return "refused", f"could not be started: {reason or 'the keeper ended early'}", []
        names = ready.removeprefix("ready ")
        return *self._judge_program(), names.split(",")

    def _judge_program(self) -> tuple[str, str]:
        if self._reason is not None:
            return self._reason
        code, _, cpu = self._exit.decode().partition(" ")
        if code == "0" and self._report == self._nonce:
            return "passed", ""
        if not code:
            return "killed", "its keeper was killed"
        if code.startswith("-"):
            return self._judge_signal(-int(code), float(cpu))
        if self._report.startswith(b"M"):
            return "out of memory", "MemoryError"
        if self._report.startswith(b"E"):
            return "failed", self._report[1:].decode(errors="replace")
        return "failed", f"ended before its last line (exit status {code})"

    def _judge_signal(self, number: int, cpu: float) -> tuple[str, str]:
        if number == signal.SIGXCPU or (number == signal.SIGKILL and cpu >= self._request.cpu_seconds):
            return "timed out", f"more than {self._request.cpu_seconds} s of processor time"
        try:
            return "killed", f"signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return "killed", f"signal {number}"


def _payload(content: bytes) -> int:
    """A file without a name, read from its start."""
    file = os.memfd_create("program")
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file
