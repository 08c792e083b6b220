"""Finds profiles and targets by name or by path. A file may say `extends = "other"`; its own keys win over the other's.

Files whose name starts with an underscore are bases to extend: they are neither listed nor built. A target names its
profile (`profile = "h100"`) or carries it (`[profile]`, which may extend a known one), so that a board of one's own is
a single file. Names are looked up in the library that travels with EdgeForge, then beside the file that says them.
The profile `cpu` is that of the machine's own kind of processor.
"""

import platform
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from edgeforge.errors import UnusableInput
from edgeforge.hardware.fields import Fields
from edgeforge.hardware.parse import parse_profile, parse_target
from edgeforge.hardware.types import HardwareProfile, Target

Table = dict[str, object]
ARM = ("aarch64", "arm64", "armv8l")  # as platform.machine() calls it


def available_targets() -> tuple[str, ...]:
    """The names that `load_target` knows, sorted."""
    return _names("targets")


def available_profiles() -> tuple[str, ...]:
    """The names that `load_profile` knows, sorted."""
    return _names("profiles")


def load_target(reference: str | Path) -> Target:
    """A target by name, or from a TOML file. Raises UnusableInput: no such target, or a key that is wrong."""
    path = _locate(str(reference), "target")
    fields = Fields(_resolve(path, "targets", ()), _spoken(path))
    profile = fields.raw("profile")
    if isinstance(profile, str):
        hardware = _profile_at(_find(profile, "profiles", path, f"{_spoken(path)}: "))
    elif isinstance(profile, dict):
        inline = _extend(profile, "profiles", path, ())
        hardware = parse_profile(Fields(inline, _spoken(path), "profile."), path.stem)
    else:
        raise fields.refuse("'profile' must be a profile's name or a table")
    return parse_target(fields, path.stem, hardware)


def load_profile(reference: str | Path) -> HardwareProfile:
    """A profile by name, or from a TOML file. Raises UnusableInput."""
    return _profile_at(_locate(str(reference), "profile"))


def _profile_at(path: Path) -> HardwareProfile:
    return parse_profile(Fields(_resolve(path, "profiles", ()), _spoken(path)), path.stem)


def _folder(kind: str) -> Path:
    """`kind` is "targets" or "profiles". A wheel carries them inside the package, a checkout beside it."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_data" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise UnusableInput(f"EdgeForge's own folder '{kind}' is missing", hint="install EdgeForge again")


def _own(name: str, kind: str) -> str:
    """What a name stands for: the profile `cpu` is the one of this machine's processor."""
    if (name, kind) != ("cpu", "profiles"):
        return name
    return "cpu-arm64" if platform.machine().lower() in ARM else "cpu-x86-64"


def _names(kind: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _folder(kind).glob("*.toml") if not path.stem.startswith("_")))


def _locate(reference: str, word: str) -> Path:
    """A name of the library, or a path; what looks like neither is answered with the nearest name."""
    kind = f"{word}s"
    reference, names = _own(reference, kind), _names(kind)
    if reference in names:
        return _folder(kind) / f"{reference}.toml"
    path = Path(reference)
    if path.suffix == ".toml" or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UnusableInput(f"there is no {word} file {reference}", hint=f"known {kind}: {', '.join(names)}")
    near = get_close_matches(reference.lower(), names, n=1)
    did_you_mean = f"; did you mean '{near[0]}'?" if near else ""
    hint = f"known {kind}: {', '.join(names)}; or give the path of a TOML file"
    raise UnusableInput(f"there is no {word} '{reference}'{did_you_mean}", hint=hint)


def _find(name: str, kind: str, beside: Path, context: str) -> Path:
    """The file that `name` means when `beside` says it. The library first: `h100` beside a target may be a target."""
    name = _own(name, kind)
    for folder in (_folder(kind), beside.parent):
        path = folder / f"{name}.toml"
        if "/" not in name and path.is_file():
            return path
    near = get_close_matches(name, _names(kind), n=1)
    did_you_mean = f"; did you mean '{near[0]}'?" if near else ""
    raise UnusableInput(
        f"{context}there is no {kind[:-1]} '{name}'{did_you_mean}", hint=f"known: {', '.join(_names(kind))}"
    )


def _resolve(path: Path, kind: str, trail: tuple[Path, ...]) -> Table:
    """The file's table with what it extends merged underneath."""
    if path.resolve() in trail:
        raise UnusableInput(f"{_spoken(path)}: 'extends' goes round in a circle")
    return _extend(_read(path), kind, path, (*trail, path.resolve()))


def _extend(table: Mapping[str, object], kind: str, path: Path, trail: tuple[Path, ...]) -> Table:
    base = table.get("extends")
    own = {key: value for key, value in table.items() if key != "extends"}
    if base is None:
        return own
    if not isinstance(base, str):
        raise UnusableInput(f"{_spoken(path)}: 'extends' must be a name, not {base!r}")
    return _merge(_resolve(_find(base, kind, path, f"{_spoken(path)}: 'extends': "), kind, trail), own)


def _merge(base: Table, own: Table) -> Table:
    """Key by key; tables merge, anything else is replaced."""
    merged = dict(base)
    for key, value in own.items():
        below = base.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _read(path: Path) -> Table:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UnusableInput(f"cannot read {_spoken(path)}: {error.strerror}") from error
    except RecursionError:
        raise UnusableInput(f"{_spoken(path)} is nested too deeply to be a target or a profile") from None
    except ValueError as error:  # tomllib's, and those of texts and numbers that are none
        raise UnusableInput(f"{_spoken(path)} is not valid TOML: {error}") from error


def _spoken(path: Path) -> str:
    """How an error names the file: library files by folder and name, others as the user gave them."""
    for kind in ("targets", "profiles"):
        if path.parent == _folder(kind):
            return f"{kind}/{path.name}"
    return str(path)
