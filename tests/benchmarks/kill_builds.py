"""Kills builds of the demo at random moments, and looks at what is left: no bundle, or the very one.

    python tests/benchmarks/kill_builds.py [--kills 200] [--seed 1] [--model demo] [--folder DIR]

Each kind of bundle is built once undisturbed: its hashes, its time, the bytes it writes. Then the same command is given
again and again and killed (SIGKILL) at a moment drawn from all of that time, until it gets through; the bundle is
compared, and the next round begins. At every death there must be no bundle, or one that verifies.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KINDS: Mapping[str, Sequence[str]] = {
    "onnx": ("--target", "cpu"),
    "modelopt": ("--target", "h100", "--scheme", "fp8", "--kv-cache", "bf16", "--calibration", "none"),
}
FIRST_PACKAGED = ("model.onnx", "config.json")
WAIT_S = 600


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the kills of one kind of bundle came to. Bytes are those that went through write calls."""

    kills: int = 0
    bundles: int = 0
    whole_at_death: int = 0
    written_bytes: int = 0
    moments: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    killed: bool
    seconds: float
    written_bytes: int


def run(command: Sequence[str], kill_after_s: float | None = None) -> Run:
    """Start the command; kill it after a time, unless it has ended by then. RuntimeError where it fails by itself."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
        deadline = started + (WAIT_S if kill_after_s is None else kill_after_s)
        while not _ended(process.pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        ended = _ended(process.pid)
        if not ended:
            process.send_signal(signal.SIGSTOP)
        written = _written_bytes(process.pid)
        process.kill()
        code = process.wait()
        if code not in (0, -signal.SIGKILL):
            told.seek(0)
            raise RuntimeError(f"exit {code}: {told.read().decode()}")
    return Run(killed=code != 0, seconds=time.monotonic() - started, written_bytes=written)


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _written_bytes(pid: int) -> int:
    """By write calls of the process, which may be a zombie."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar:")))


def hashes(bundle: Path) -> dict[str, str]:
    paths = (path for path in sorted(bundle.rglob("*")) if path.is_file())
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def stage_at_death(out: Path) -> str:
    """How far the dead process had come, by what it left."""
    bundle = out.parent / f".{out.name}.partial" / "bundle"
    if out.exists():
        return "after the rename"
    if (bundle / "manifest.json").exists():
        return "sealing"
    if any((bundle / "model" / name).exists() for name in FIRST_PACKAGED):
        return "packaging"
    return "weights" if (bundle.parent / "journal").exists() else "before the weights"


def kill_builds(kind: str, arguments: argparse.Namespace, folder: Path, kills: int, chance: random.Random) -> Tally:
    command = [sys.executable, "-m", "edgeforge.cli", "build", "--model", arguments.model, *KINDS[kind]]
    command += ["--no-validate", "--quiet", "--out"]
    reference, out, tally = folder / f"{kind}-whole", folder / kind, Tally()
    whole = run([*command, str(reference)])
    expected = hashes(reference)
    print(f"{kind}: undisturbed {whole.seconds:.1f} s, {whole.written_bytes:,} bytes written", flush=True)
    while tally.kills < kills:
        attempt = run([*command, str(out)], kill_after_s=chance.uniform(0, whole.seconds * 1.1))
        tally.written_bytes += attempt.written_bytes
        tally.kills += attempt.killed
        if attempt.killed:
            tally.moments.append(stage_at_death(out))
        if out.exists():
            if hashes(out) != expected:
                raise AssertionError(f"{out} is another bundle than {reference}")
            tally.whole_at_death += attempt.killed
            tally.bundles += 1
            shutil.rmtree(out)
    if not tally.bundles or (out.parent / f".{out.name}.partial").exists():
        tally.written_bytes += run([*command, str(out)]).written_bytes
        tally.bundles += 1
        if hashes(out) != expected:
            raise AssertionError(f"{out} is another bundle than {reference}")
    redone = tally.written_bytes - tally.bundles * whole.written_bytes
    stages = ", ".join(f"{tally.moments.count(stage)} {stage}" for stage in dict.fromkeys(sorted(tally.moments)))
    print(
        f"{kind}: {tally.kills} kills ({stages}), {tally.bundles} bundles, all byte-identical; "
        f"{redone:,} bytes written again, {redone / max(1, tally.kills):,.0f} a kill",
        flush=True,
    )
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for number, kind in enumerate(KINDS):
            share = arguments.kills // len(KINDS) + (number < arguments.kills % len(KINDS))
            kill_builds(kind, arguments, Path(name), share, chance)


if __name__ == "__main__":
    main()
