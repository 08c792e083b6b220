"""What `build` packs into one file, with a bundle's runtime. It answers with the folder `bundle` beside it."""

import sys
from pathlib import Path

from edgeforge_runtime import load

program = sys.executable if getattr(sys, "frozen", False) else sys.argv[0]
model = load(Path(program).resolve().parent / "bundle")
for chunk in model.chat([{"role": "user", "content": " ".join(sys.argv[1:])}], temperature=0):
    print(chunk.text, end="", flush=True)
print()
