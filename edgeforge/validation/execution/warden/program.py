"""The last steps before the untrusted program: limits, user, capabilities, Landlock, seccomp, exec."""

import fcntl
import os
import resource
import signal
from collections.abc import Mapping

from . import linux, root, seccomp
from .request import Layers, Refused, Request

OPEN_FILES = 64
SHARED = 2  # the keeper and the warden, which count as processes of the same user in a user namespace
FIRST_FREE = 32


def start(request: Request, layers: Layers, user: int, ends: Mapping[str, int], code: str) -> None:
    """Becomes an interpreter that runs `code`; never returns.

    Says "ready" and the layers on the setup pipe, which closes at exec, or in a line of its own why not.
    """
    setup = ends["setup"]
    try:
        os.setsid()
        setup = _connect(ends)
        work = os.getcwd()
        _limit(request, layers)
        _drop_user(layers, user)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # forgotten with every change of user, hence here
        layers.restrict_files(request.sources, list(root.DEVICES), work)
        own = None if "pid" in layers else os.getpid()
        layers.put("seccomp", lambda: seccomp.install(own))
        layers.put("guard", lambda: None)  # comes with inside.py
        os.write(setup, f"ready {','.join(layers.in_force)}\n".encode())
        os.execve(request.interpreter, _command(request, layers, code), _environment(request, work))
    except (OSError, Refused, ValueError) as error:
        os.write(setup, f"refused {error}".encode())
    finally:
        os._exit(1)


def _connect(ends: Mapping[str, int]) -> int:
    """Descriptors 0 to 4 as inside.py knows them: nothing, output twice, payload, report. All others close at exec."""
    order = (os.open(os.devnull, os.O_RDONLY), ends["output"], ends["output"], ends["payload"], ends["report"])
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE) for end in (*order, ends["setup"])]
    for place, end in enumerate(moved[:-1]):
        os.dup2(end, place)
    os.closerange(len(order), min(moved))
    return moved[-1]


def _limit(request: Request, layers: Layers) -> None:
    processes = request.processes
    if "userns" in layers:
        processes += SHARED
    elif os.geteuid() != 0:
        processes += _tasks_of_user()
    limits = {
        resource.RLIMIT_CPU: request.cpu_seconds,
        resource.RLIMIT_AS: request.memory,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_FSIZE: request.file_size,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # SIGXCPU can be ignored; SIGKILL, which comes with the hard limit, cannot.
        resource.setrlimit(kind, (soft, soft + 1 if kind == resource.RLIMIT_CPU and hard != soft else soft))


def _tasks_of_user() -> int:
    """How many threads run as this user, who may not start more than its limit."""
    count = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                count += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue
    return count


def _drop_user(layers: Layers, user: int) -> None:
    """Another user where we are root, no capabilities, no way to gain any. Root goes no further than here."""

    def become() -> None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)

    _drop_capabilities()
    if os.geteuid() == 0:
        layers.put("user", become)
        if os.geteuid() == 0:
            raise Refused("root could not become another user")
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


def _drop_capabilities() -> None:
    """Out of the bounding set; exec by a user who is not root clears the others."""
    for capability in range(64):
        try:
            linux.prctl(linux.PR_CAPBSET_DROP, capability)
        except OSError:
            return


def _command(request: Request, layers: Layers, code: str) -> list[str]:
    """No user site, no site-packages, no bytecode written, nothing of the current folder on the path."""
    watch_files = "root" not in layers and "landlock" not in layers
    words = [word for word, wanted in (("guard", "guard" in layers), ("files", watch_files)) if wanted]
    return [request.interpreter, "-s", "-S", "-B", "-P", "-c", code, *words]


def _environment(request: Request, work: str) -> dict[str, str]:
    """The whole of it. A fixed hash seed: the order of a set of strings must not decide who passes."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8", "TZ": "UTC"}
    environment["PYTHONHASHSEED"] = "0"
    if request.library_path:
        environment["LD_LIBRARY_PATH"] = request.library_path
    return environment
