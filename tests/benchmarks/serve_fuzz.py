"""Schemathesis against a running server: whatever is sent is answered as /openapi.json says, without a 500 or a hang.

    python tests/benchmarks/serve_fuzz.py [--examples 100] [--seed 1]

The bundle is a tiny random one with a context of 192 tokens, so that answers are short. Left out of the checks: that
every request which the document allows is accepted, since a prompt may be longer than the context.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from tiny_bundle import Shape, make_bundle  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="for each operation, after the coverage phase")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "tiny", Shape(context=192))
        command = [sys.executable, "-m", "edgeforge.cli", "serve", str(bundle), "--port", "0", "--threads", "1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            place = re.search(r"http://\S+", server.stderr.readline())
            assert place, "the server does not start"
            with subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL):
                done = subprocess.run(schemathesis(place[0], options), cwd=folder, check=False)
                server.terminate()
    return done.returncode


def schemathesis(url: str, options: argparse.Namespace) -> list[str]:
    program = Path(sys.executable).parent / "schemathesis"
    return [
        str(program),
        "run",
        f"{url}/openapi.json",
        "--phases=examples,coverage,fuzzing",
        f"--max-examples={options.examples}",
        f"--seed={options.seed}",
        "--checks=all",
        "--exclude-checks=positive_data_acceptance",
        "--request-timeout=60",
        "--continue-on-failure",
        "--no-shrink",
    ]


if __name__ == "__main__":
    sys.exit(main())
