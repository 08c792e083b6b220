"""What the program's own interpreter runs (`python -c`): reads the program, runs it, and reports how it ended.

Descriptor 3 holds 32 secret bytes and the source; on descriptor 4 go back the secret (the program ran past its last
line), b"M" (out of memory), or b"E" and the exception in one line. While the program runs the secret is in no variable:
it waits on the interpreter's evaluation stack, as the left operand of a sum whose right operand is the program. Frames
do not show that stack, and the ways to it through gc, ctypes and tracing are refused by an audit hook.

The program runs in an empty namespace, as in OpenAI's human-eval (execution.py) and Hugging Face's code_eval: there
`__name__` is not "__main__".
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # the name is all that checkers need, and typing takes milliseconds to import
    from collections.abc import Callable

    Hook = Callable[[str, tuple[object, ...]], None]


def main(words: list[str]) -> None:
    write, leave = os.write, os._exit
    if "guard" in words:
        sys.addaudithook(refuse())
    if "files" in words:
        sys.addaudithook(refuse_files(os.getcwd()))
    sys.argv[:] = [""]
    source = os.pread(3, os.fstat(3).st_size, 32)
    try:
        code = compile(source, "<program>", "exec")
    except BaseException as error:
        write(4, b"E" + describe(error, source))
        leave(1)
    try:
        write(4, take() + (exec(code, {}) or b""))  # type: ignore[func-returns-value]
        leave(0)
    except MemoryError:
        write(4, b"M")
    except BaseException as error:
        write(4, b"E" + describe(error, source))
    finally:
        leave(1)


def take() -> bytes:
    secret = os.pread(3, 32, 0)
    os.close(3)
    return secret


def describe(error: BaseException, source: bytes) -> bytes:
    """The exception's type and the first line of its message, and the last line of the program that it went through."""
    message = str(error).strip().partition("\n")[0]
    text = type(error).__name__ + (f": {message}" if message else "")
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    lines = source.decode(errors="replace").split("\n")
    if 0 < line <= len(lines):
        text += f" (line {line}: {lines[line - 1].strip()})"
    return text.encode(errors="replace")[:2000]


def refuse() -> "Hook":
    """An audit hook (PEP 578) against networks, other programs, and the ways to this interpreter's insides."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(("socket.", "ctypes.", "os.exec", "os.posix_spawn", "subprocess.")) or event in {
            "os.system",
            "os.kill",
            "os.killpg",
            "signal.pthread_kill",
            "gc.get_objects",
            "gc.get_referrers",
            "gc.get_referents",
            "sys._current_frames",
            "sys.settrace",
            "sys.setprofile",
            "sys.monitoring.register_callback",
        }:
            raise PermissionError(f"not in the sandbox: {event}")

    return hook


def refuse_files(work: str) -> "Hook":
    """An audit hook for systems without walls: writes stay in `work`, reads there and in Python's folders."""
    real, join, flags_of_writing = os.path.realpath, os.path.join, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    writable = (real(work),)
    library = real(os.path.dirname(os.__file__))
    readable = (
        *writable,
        library,
        real(sys.base_prefix),
        "/usr/lib",
        "/usr/share/zoneinfo",
        "/dev/null",
        "/dev/urandom",
    )
    entered: list[str] = []

    def beneath(path: str | bytes, folders: tuple[str, ...]) -> bool:
        where = real(join(work, os.fsdecode(path)))
        return any(where == folder or where.startswith(folder + "/") for folder in folders)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if entered or not event.startswith(("open", "os.")):
            return
        entered.append(event)
        try:
            paths = [a for a in arguments[:2] if isinstance(a, (str, bytes))]
            if event == "open":
                writes = isinstance(arguments[2], int) and arguments[2] & flags_of_writing
                wrong = not all(beneath(p, writable if writes else readable) for p in paths[:1])
            elif event in {"os.listdir", "os.scandir", "os.chdir"}:
                wrong = not all(beneath(p, readable) for p in paths)
            else:
                wrong = not all(beneath(p, writable) for p in paths)
        finally:
            entered.clear()
        if wrong:
            raise PermissionError(f"not in the sandbox: {event}")

    return hook


if __name__ == "__main__":
    main(sys.argv[1:])
