"""What the supervisor asks of a warden, and which layers of isolation came into force."""

from collections.abc import Callable

from . import landlock, linux

# In the order in which they are put in force. `supervisor` has a phrase for each.
LAYERS = ("user", "userns", "pid", "net", "ipc", "uts", "root", "landlock", "seccomp", "guard")


class Refused(Exception):
    """A layer that was asked for could not be put in force."""


class Request:
    """Words of a command line, so that neither side needs a parser. Sizes are in bytes, times in seconds."""

    def __init__(self, words: list[str]) -> None:
        self.owner, self.folder, self.interpreter, self.library_path, sources, layers, exact = words[:7]
        self.sources = sources.split("\n")
        self.layers = set(layers.split(","))
        self.exact = exact == "exact"
        self.seconds, self.cpu_seconds = float(words[7]), int(words[8])
        self.memory, self.processes, self.file_size, self.output = map(int, words[9:13])


class Layers:
    """Puts layers in force, one after the other, in the process that calls and those it will fork."""

    def __init__(self, request: Request) -> None:
        self._wanted = request.layers
        self._exact = request.exact
        self.in_force: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.in_force

    def put(self, name: str, action: Callable[[], None]) -> None:
        """Skips what is not wanted. Raises Refused where every wanted layer must hold and this one does not."""
        if name not in self._wanted:
            return
        try:
            action()
        except OSError as error:
            if self._exact:
                raise Refused(f"{name}: {error}") from error
            return
        self.in_force.append(name)

    def unshare(self, name: str, flags: int) -> None:
        self.put(name, lambda: linux.unshare(flags))

    def restrict_files(self, readable: list[str], devices: list[str], work: str) -> None:
        self.put("landlock", lambda: landlock.restrict(readable, devices, work))
