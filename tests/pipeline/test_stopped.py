"""Builds in processes of their own: killed, interrupted, terminated, out of disk. The same command goes on."""

import hashlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

# Every write takes its time, and the small model comes in many pieces.
SLOWLY = """
import sys, time
from edgeforge.cli import main
from edgeforge.model.placed_file import PlacedFile
from edgeforge.pipeline import walk

walk.PIECE_ELEMENTS, write = 4096, PlacedFile.write

def slow(self, array, offset):
    time.sleep(0.005)
    return write(self, array, offset)

PlacedFile.write = slow
main()
"""
# As when another program fills the disk after the space was checked.
UNAWARE = """
import shutil
plenty = type(shutil.disk_usage("/"))(1 << 60, 0, 1 << 60)
shutil.disk_usage = lambda path: plenty
from edgeforge.cli import main
main()
"""
KINDS = {
    "onnx": ("--target", "cpu", "--group-size", "32"),
    "modelopt": ("--target", "h100", "--scheme", "fp8", "--kv-cache", "bf16", "--calibration", "none"),
}
KILLS = 3


def command(stories: Path, out: Path, kind: str = "onnx", program: str = SLOWLY) -> list[str]:
    arguments = ["build", "--model", str(stories), "--out", str(out), "--no-validate", "--threads", "2", *KINDS[kind]]
    return [sys.executable, "-c", program, *arguments]


def journal(out: Path) -> Path:
    return out.parent / f".{out.name}.partial" / "journal"


def contents(bundle: Path) -> dict[str, str]:
    files = (path for path in sorted(bundle.rglob("*")) if path.is_file())
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def grown(process: "subprocess.Popen[str]", out: Path, lines: int) -> None:
    """Wait until the journal has so many lines, or the build is over."""
    while process.poll() is None and not (journal(out).exists() and journal(out).read_bytes().count(b"\n") >= lines):
        time.sleep(0.005)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_build_killed_at_random_moments_ends_with_the_same_bytes(stories: Path, tmp_path: Path, kind: str) -> None:
    whole, out, chance = tmp_path / "whole", tmp_path / "killed", random.Random(kind)
    subprocess.run(command(stories, whole, kind), check=True, capture_output=True)
    for _ in range(KILLS):
        with subprocess.Popen(
            command(stories, out, kind), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        ) as process:
            before = journal(out).read_bytes().count(b"\n") if journal(out).exists() else 1
            grown(process, out, before + 1)
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
        assert not out.exists() or contents(out) == contents(whole)
    if not out.exists():
        subprocess.run(command(stories, out, kind), check=True, capture_output=True)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    ("numbers", "code"), [((signal.SIGINT, signal.SIGINT), 130), ((signal.SIGTERM,), 143)], ids=["twice", "terminated"]
)
def test_an_interrupted_build_says_how_to_go_on(
    numbers: Sequence[signal.Signals], code: int, stories: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command(stories, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        grown(process, out, 10)
        for number in numbers:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert re.search(r"\d+ of 35 linears are done: run the same command to go on; --fresh starts again\n", err), err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    assert journal(out).read_bytes().endswith(b"\n")


def test_a_full_disk_costs_nothing_that_was_finished(stories: Path, tmp_path: Path) -> None:
    """A tmpfs, in a user namespace of its own, that gets a little larger after each failure."""
    disk, sizes = tmp_path / "disk", ("250k", "450k", "650k", "850k", "2m")
    disk.mkdir()
    script = f"""
        mount -t tmpfs -o size=100k tmpfs {disk} || exit 99
        for size in {" ".join(sizes)}; do
            mount -o remount,size=$size {disk} || exit 99
            "$@" 2>>{tmp_path}/told
            echo $? >>{tmp_path}/codes
            ls -A {disk} >>{tmp_path}/left
            [ -d {disk}/out ] && cp -r {disk}/out {tmp_path}/out && exit 0
        done
    """
    inside = ["unshare", "-rm", "sh", "-c", script, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*inside[:2], "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount a tmpfs")
    subprocess.run([*inside, *command(stories, disk / "out", program=UNAWARE)], check=True, capture_output=True)
    codes, told = (tmp_path / "codes").read_text().split(), (tmp_path / "told").read_text()
    assert codes[-1] == "0"
    assert len(codes) >= 3
    assert set(codes[:-1]) == {"8"}
    assert told.count("error: no space left on the disk") == len(codes) - 1
    assert "run the same command to go on" in told
    subprocess.run(command(stories, tmp_path / "whole", program=UNAWARE), check=True, capture_output=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
