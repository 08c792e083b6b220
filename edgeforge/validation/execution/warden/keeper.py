"""The keeper: parent of the program, and the first process of its PID namespace where there is one.

When the keeper ends, the kernel kills all that is left in the namespace. The program can neither trace it nor, as it is
the first process, signal it.
"""

import os
import signal
from collections.abc import Mapping

from . import linux, program, root
from .request import Layers, Refused, Request

HOST_NAME = "sandbox"


def start(request: Request, layers: Layers, user: int, ends: Mapping[str, int]) -> int:
    """Forks the keeper, which forks the program; its process id. `ends` are the pipes' writing ends, by name.

    On `setup` comes "ready " and the layers in force, one line, or "refused " and why; on `exit` the program's exit
    code (minus the number of the signal that ended it) and its processor time in seconds.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        _keep(request, layers, user, ends)
    except (OSError, Refused) as error:
        os.write(ends["setup"], f"refused {error}".encode())
    finally:
        os._exit(1)


def _keep(request: Request, layers: Layers, user: int, ends: Mapping[str, int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    code = _inside()
    _first_to_be_killed()
    for layer, flag in (("net", linux.CLONE_NEWNET), ("ipc", linux.CLONE_NEWIPC), ("uts", linux.CLONE_NEWUTS)):
        layers.unshare(layer, flag)
    if "uts" in layers:
        linux.set_host_name(HOST_NAME)
    _enter_root(request, layers, user)
    child = os.fork()
    if not child:
        program.start(request, layers, user, ends, code)
    for name in ("setup", "report", "output", "payload"):
        os.close(ends[name])
    while True:
        pid, status, usage = os.wait4(-1, 0)
        if pid == child:
            ended = os.waitstatus_to_exitcode(status)
            os.write(ends["exit"], f"{ended} {usage.ru_utime + usage.ru_stime:.3f}".encode())
            os._exit(0)


def _inside() -> str:
    with open(os.path.join(os.path.dirname(__file__), "inside.py")) as file:
        return file.read()


def _first_to_be_killed() -> None:
    """Should the machine run out of memory, the kernel takes these processes first."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        return


def _enter_root(request: Request, layers: Layers, user: int) -> None:
    """The private root, or else the folder as it is, given to the user."""
    os.chdir(request.folder)

    def build() -> None:
        linux.unshare(linux.CLONE_NEWNS)
        root.build(request.folder, request.sources, user, request.file_size)

    layers.put("root", build)
    if "root" not in layers and os.geteuid() == 0:
        os.chown(request.folder, user, user)
