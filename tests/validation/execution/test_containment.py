"""A hostile program is contained and counts as a failure, behind all walls and behind each that is meant for it."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeforge.validation.execution import Limits

from . import contained
from .contained import ROOT, run

BOUND_SECONDS = 15.0  # over each program's own limit, on a busy machine

# What must hold with all layers must hold without the interpreter's hooks too, which a program can get round.
HOOKS = pytest.mark.parametrize("without", [(), ("guard",)], ids=["all", "no-hooks"])


@HOOKS
def test_a_fork_bomb_ends(without: tuple[str, ...]) -> None:
    started = time.monotonic()
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    assert not run(bomb, Limits(seconds=1, processes=16), without=without).passed
    assert time.monotonic() - started < 1 + BOUND_SECONDS


def test_a_fork_bomb_ends_where_there_is_no_pid_namespace() -> None:
    bomb = (
        "import os\nwhile True:\n    try:\n        os.fork()\n        os.setsid()\n    except OSError:\n        pass\n"
    )
    assert run(bomb, Limits(seconds=1, processes=16), without=("pid", "guard")).status == "timed out"


def test_no_more_processes_and_threads_than_allowed() -> None:
    fork = "import os, time\nfor i in range(20):\n    if not os.fork():\n        time.sleep(9)\n        os._exit(0)\n"
    assert "BlockingIOError" in run(fork, Limits(seconds=5, processes=8)).detail
    assert run(fork.replace("20", "6"), Limits(seconds=5, processes=8)).passed
    threads = (
        "import threading, time\nfor i in range(5000):\n    threading.Thread(target=time.sleep, args=(9,)).start()\n"
    )
    assert run(threads).status in ("failed", "out of memory")


@pytest.mark.parametrize("loop", ["while True: pass", "import time; time.sleep(1000)"])
def test_an_endless_loop_times_out(loop: str) -> None:
    started = time.monotonic()
    assert run(loop, Limits(seconds=1)).status == "timed out"
    assert time.monotonic() - started < 1 + BOUND_SECONDS


@pytest.mark.parametrize("without", [(), ("pid", "guard")], ids=["all", "no-pid-namespace"])
def test_ignoring_signals_does_not_help(without: tuple[str, ...]) -> None:
    source = """
import signal
for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True: pass
"""
    assert run(source, Limits(seconds=0.7), without=without).status == "timed out"


def test_ignoring_the_processor_limit_does_not_help() -> None:
    source = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass\n"
    assert "processor time" in run(source, Limits(seconds=30, cpu_seconds=1)).detail


def test_ten_gigabytes_are_not_allocated() -> None:
    assert run("x = bytearray(10 << 30)").status == "out of memory"
    assert (
        run("x = []\nwhile True:\n    x.append(bytearray(1 << 20))", Limits(memory_bytes=200 << 20)).status
        == "out of memory"
    )


def test_memory_counts_over_all_processes() -> None:
    source = (
        "import os, time\nfor i in range(8):\n    if not os.fork():\n        x = b'x' * (60 << 20)\n"
        "        time.sleep(30)\n        os._exit(0)\ntime.sleep(30)\n"
    )
    assert run(source, Limits(seconds=25, memory_bytes=200 << 20)).status == "out of memory"


@pytest.mark.parametrize("without", [(), ("guard", "landlock")], ids=["all", "root-folder"])
def test_nothing_is_written_outside(without: tuple[str, ...], tmp_path: Path) -> None:
    _open_to_all(tmp_path)
    places = [Path("/etc"), Path.home(), ROOT, Path(__file__).parent, Path("/tmp"), Path("/dev/shm"), tmp_path]
    for folder in places:
        target = folder / "edgeforge-escaped"
        run(f"open({str(target)!r}, 'w').write('x')", without=without)
        run(f"import os\nos.mkdir({str(target)!r})", without=without)
        assert not target.exists()
    victim = tmp_path / "victim"
    victim.write_text("whole")
    victim.chmod(0o666)
    for act in ("os.remove(p)", "os.truncate(p, 0)", "os.rename(p, p + '2')", "open(p, 'a').write('x')"):
        assert not run(f"import os\np = {str(victim)!r}\n{act}", without=without).passed
    assert victim.read_text() == "whole"


@pytest.mark.parametrize("without", [(), ("guard", "landlock")], ids=["all", "root-folder"])
def test_no_secret_is_read(without: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _open_to_all(tmp_path)
    secret = tmp_path / "token"
    secret.write_text("s3cret")
    secret.chmod(0o644)
    monkeypatch.setenv("EDGEFORGE_TEST_TOKEN", "s3cret")
    paths = [str(secret), "/etc/passwd", __file__, f"/proc/{os.getpid()}/environ", "/proc/self/environ", "/proc/1/maps"]
    for path in paths:
        assert run(f"open({path!r}).read()", without=without).status == "failed", path
    assert run("import os\nassert not any('s3cret' in v for v in os.environ.values())", without=without).passed
    assert run("import os\nassert 'EDGEFORGE_TEST_TOKEN' not in os.environ", without=without).passed


@pytest.mark.parametrize(
    "without",
    [(), ("guard",), ("guard", "seccomp", "landlock"), ("guard", "net", "landlock"), ("seccomp", "net", "landlock")],
    ids=["all", "no-hooks", "namespace", "seccomp", "hooks"],
)
def test_no_socket_reaches_the_machine(without: tuple[str, ...], tmp_path: Path) -> None:
    _open_to_all(tmp_path)
    path = str(tmp_path / "s")
    inet, datagram = socket.AF_INET, socket.SOCK_DGRAM
    with socket.socket() as tcp, socket.socket(inet, datagram) as udp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        unix.bind(path)
        os.chmod(path, 0o777)
        for listener in (tcp, unix):
            listener.listen()
        start = "import socket\ns = socket.socket"
        programs = [
            f"{start}()\ns.connect({tcp.getsockname()!r})",
            f"{start}(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(b'x', {udp.getsockname()!r})",
            f"{start}(socket.AF_UNIX)\ns.connect({path!r})",
        ]
        for program in programs:
            assert run(program, without=without).status == "failed"
        for listener in (tcp, udp, unix):
            listener.settimeout(0.05)
            with pytest.raises(TimeoutError):
                listener.recvfrom(1) if listener is udp else listener.accept()


@pytest.mark.parametrize("without", [(), ("guard",), ("guard", "pid")], ids=["all", "no-hooks", "no-pid-namespace"])
def test_the_parents_are_not_killed(without: tuple[str, ...]) -> None:
    for act in ("os.kill(os.getppid(), 9)", f"os.kill({os.getpid()}, 9)", "os.killpg(os.getppid(), 9)"):
        assert run(f"import os\n{act}", without=without).status == "failed"
    everyone = (
        "import os\nfor pid in range(1, 40000):\n    try:\n        os.kill(pid, 9)\n    except OSError:\n        pass\n"
    )
    assert not run(everyone.replace("9)", "9) if pid != os.getpid() else 0") + "1 / 0", without=without).passed


@pytest.mark.parametrize("without", [(), ("guard",), ("guard", "pid")], ids=["all", "no-hooks", "no-pid-namespace"])
def test_the_parent_is_not_traced(without: tuple[str, ...]) -> None:
    attach = "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0"
    assert run(attach, without=without).status == "failed"


def test_namespaces_mounts_and_keys_are_refused() -> None:
    calls = ("unshare(0x10000000)", "mount(b'x', b'/tmp', b'tmpfs', 0, 0)", "setns(0, 0)", "syscall(425, 1, 0)")
    for call in calls:
        source = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.{call} == -1
assert ctypes.get_errno() == 1  # EPERM
"""
        assert run(source, without=("guard", "landlock")).passed, call


def test_ten_gigabytes_are_not_written() -> None:
    write = "with open('big', 'wb') as file:\n    for _ in range(10 << 10):\n        file.write(bytes(1 << 20))\n"
    assert "File too large" in run(write, Limits(seconds=10, file_bytes=8 << 20)).detail
    many = write.replace("'big'", "str(i)").replace("10 << 10", "4").replace("\n", "\n ")
    filled = run(f"for i in range(1000):\n {many}\n", Limits(seconds=10, file_bytes=8 << 20))
    assert "No space left" in filled.detail


def test_endless_output_is_cut_off() -> None:
    assert run("while True: print('x' * 10000)", Limits(seconds=10)).status == "too much output"
    assert run("import os\nwhile True: os.write(4, b'x' * 10000)", Limits(seconds=1)).status == "timed out"
    assert run("print('x' * 1000)").passed


def test_a_crash_is_told_by_its_signal() -> None:
    deep = "import sys\nsys.setrecursionlimit(10 ** 9)\nx = []\nfor _ in range(3 * 10 ** 5):\n    x = [x]\nrepr(x)\n"
    assert run(deep).detail == "signal 11 (SIGSEGV)"
    assert run("def f(): f()\nf()").detail.startswith("RecursionError")
    assert run("import os\nos.abort()").detail == "signal 6 (SIGABRT)"


@pytest.mark.parametrize("without", [(), ("pid",)], ids=["all", "no-pid-namespace"])
def test_a_daemon_does_not_outlive_its_program(without: tuple[str, ...]) -> None:
    daemon = (
        "import os, time\nif not os.fork():\n    os.setsid()\n    if os.fork():\n        os._exit(0)\n"
        "    os.closerange(0, 64)\n    time.sleep(60)\n    os._exit(0)\ntime.sleep(0.2)\n"
    )
    assert run(daemon + "os._exit(0)", without=without).status == "failed"
    assert run(daemon, without=without).passed  # its checks ran; `run` has seen that nothing is left


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("without", [(), ("pid",)], ids=["all", "no-pid-namespace"])
def test_everything_ends_with_the_process_that_validates(number: signal.Signals, without: tuple[str, ...]) -> None:
    contained.here(frozenset(without))
    mark = (64 << 20) + secrets.randbelow(1 << 20)
    script = f"""
from edgeforge.validation.execution import Limits, layers, supervisor
program = "import os\\nif not os.fork(): os.setsid()\\nwhile True: pass"
limits = Limits(seconds=60, cpu_seconds=60, file_bytes={mark})
supervisor._run(program, limits, layers.layers_without(frozenset({without!r})))
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 30
        while len(contained.survivors(mark)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(contained.survivors(mark)) == 2
        parent.send_signal(number)
    assert contained.wait_until_gone(mark, 10)


def _open_to_all(folder: Path) -> None:
    """Lets the program's user in, so that only the walls can keep it out."""
    for part in (folder, *folder.parents):
        if part.owner() == folder.owner() and len(part.parts) > 2:
            part.chmod(0o777)
