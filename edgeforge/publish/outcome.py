"""What goes into a push, and what pushing and pulling come to, wherever the bundle is."""

from dataclasses import dataclass
from pathlib import Path

from edgeforge.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A bundle whose every byte was checked."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """`sent_bytes` went over the wire, in whole chunks; `present_bytes` were there, `mounted_bytes` were lent by
    another repository; None where the library that sends does not tell. `digest` is that of the manifest, of the index
    over `targets`, the hub's commit, or the SHA-256 of SHA256SUMS.
    """

    digest: str
    targets: tuple[str, ...]
    files: int
    size_bytes: int
    sent_bytes: int | None = None
    present_bytes: int | None = None
    mounted_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """`received_bytes` came over the wire, `resumed_bytes` were left by a pull that was cut, `reused_bytes` are files
    of the bundle that was at the destination.
    """

    digest: str
    target: str
    files: int
    size_bytes: int
    received_bytes: int
    resumed_bytes: int = 0
    reused_bytes: int = 0
