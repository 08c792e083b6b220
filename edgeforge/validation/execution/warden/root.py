"""A root folder of the program's own: the interpreter's folders read-only, an empty working folder, three devices.

There is no /proc and no /sys: HumanEval's programs need neither, and /proc/self/mem would be a way to read the
interpreter's memory. Everything is mounted in a private mount namespace and vanishes with it.
"""

import os

from . import linux

WORK = "/tmp"  # where programs expect to be allowed to write
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
MAX_FILES = 1024


def build(folder: str, sources: list[str], user: int, size_bytes: int) -> None:
    """Mounts the new root over `folder`, an empty directory, and enters it; the working folder is then the current one.

    `sources` are absolute paths without doubles: folders, files, or symbolic links, each put at the same place.
    """
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    safe = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("tmpfs", folder, "tmpfs", safe, "mode=755,size=1m")
    for source in sources:
        _bind(source, folder + source)
    for device in DEVICES:
        _bind(device, folder + device, device=True)
    os.makedirs(folder + WORK, exist_ok=True)
    linux.mount(
        "tmpfs", folder + WORK, "tmpfs", safe, f"mode=700,uid={user},gid={user},size={size_bytes},nr_inodes={MAX_FILES}"
    )
    linux.enter_root(folder)
    linux.mount(None, "/", None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | safe)
    os.chdir(WORK)


def _bind(source: str, target: str, *, device: bool = False) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    linux.mount(source, target, None, linux.MS_BIND | linux.MS_REC)
    linux.read_only(target, no_devices=not device)
