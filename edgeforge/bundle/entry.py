"""Answers a prompt with the model in this folder: `python BUNDLE "What is the capital of France?"`"""

import contextlib
import sys
from pathlib import Path

# A bundle is verified byte by byte, so running it must add nothing to it. This file's own bytecode was written before
# its first line ran; the rest is never written.
sys.dont_write_bytecode = True
BUNDLE = Path(__file__).resolve().parent
with contextlib.suppress(OSError):
    for cached in (BUNDLE / "__pycache__").glob("__main__.*.pyc"):
        cached.unlink()
    (BUNDLE / "__pycache__").rmdir()

if sys.version_info < (3, 10):  # noqa: UP036  (the toolchain needs more than a bundle does)
    sys.exit("error: this bundle needs Python 3.10 or newer")

from runtime.answer import main  # type: ignore[import-not-found]  # noqa: E402  (the folder beside this file)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], bundle=BUNDLE))
