"""The gate on text, on a model whose true loss is known to be large or small: 4 bits rounded to nearest fail, 8 pass.

    python tests/benchmarks/gate_tells.py [--chunks 8]

Both bundles are built of the shuffled demo (see fidelity_subjects.py) and validated on WikiText-2 under the cpu
target's gate, each twice: the second time from what the first one stored.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from big_model import cache_folder  # noqa: E402
from fidelity_subjects import shuffled_demo  # noqa: E402

from edgeforge.hardware import load_target  # noqa: E402
from edgeforge.pipeline import BuildOptions, build, resolve_target  # noqa: E402
from edgeforge.validation import ValidationReport, reference_store, validate  # noqa: E402

EXPECTED = {"w4a16": "fail", "w8a16": "pass"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=8, help="of 512 tokens, half of which are scored")
    chunks = parser.parse_args().chunks
    cache = cache_folder() / "gate"
    subject = shuffled_demo(cache, 0, chunks)
    reference_store.root = lambda: cache / "answers"  # type: ignore[assignment]
    wrong = 0
    for scheme, expected in EXPECTED.items():
        target = resolve_target(
            load_target("cpu"),
            scheme=scheme,
            group_size=32 if scheme == "w4a16" else None,
            context=512,
            algorithm="rtn",
        )
        bundle = cache / scheme
        if not bundle.exists():
            build(
                BuildOptions(target=target, model=str(subject.model), out=bundle, validate=False),
                progress=lambda *_: None,
            )
        reports: list[ValidationReport] = []
        for _ in range(2):
            started = time.perf_counter()
            text = subject.text.read_text(encoding="utf-8")
            reports.append(validate(bundle, subject.checkpoint, gate=target.gate, texts=[text], chunks=chunks))
            print(f"{scheme}: {reports[-1].verdict}, {time.perf_counter() - started:.1f} s")
        for check in reports[0].gate.checks:
            print(f"  {check.figure} {check.value:.4f} ({check.lower_bound:.4f} .. {check.upper_bound:.4f})")
        same = replace(reports[0], seconds=0.0) == replace(reports[1], seconds=0.0)
        wrong += reports[0].verdict != expected or not same
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
