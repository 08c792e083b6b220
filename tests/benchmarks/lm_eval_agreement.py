"""How far lm-eval's transformers backend and ours agree on the same float32 weights: `python lm_eval_agreement.py`.

Both real models. MMLU in 100 items, LAMBADA, WikiText and GSM8K's greedy answers; a line for each. Takes minutes.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from built import build_once  # noqa: E402
from lm_eval_twin import ask, bundle_lm, compare, transformers_lm  # noqa: E402

from edgeforge.validation.tasks import TaskOptions, prepare_tasks  # noqa: E402

SUBJECTS = ("anatomy", "astronomy", "high_school_us_history", "marketing", "philosophy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--models", default="stories,demo")
    parser.add_argument("--context", type=int, default=2048, help="of the demo")
    parser.add_argument("--items", type=int, default=20, help="of each MMLU subject (5) and of GSM8K")
    parser.add_argument("--lambada", type=int, default=100)
    parser.add_argument("--wikitext", type=int, default=5)
    parser.add_argument("--tasks", help="of those, only these: names, with commas between")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    limits = {f"mmlu_{subject}": options.items for subject in SUBJECTS}
    limits |= {"lambada_openai": options.lambada, "wikitext": options.wikitext, "gsm8k": options.items}
    if options.tasks is not None:
        limits = {name: limits[name] for name in options.tasks.split(",")}
    for model in options.models.split(","):
        reference = "demo" if model == "demo" else str(options.data / "models" / "stories260k")
        with tempfile.TemporaryDirectory() as folder:
            context = options.context if model == "demo" else None
            build = build_once(Path(folder), reference, scheme="f32", context=context)
            theirs, ours = transformers_lm(build), bundle_lm(build)
            for name, limit in limits.items():
                fewshot = 0 if model != "demo" else None
                prepared = prepare_tasks(
                    TaskOptions(names=(name,), limit=limit, num_fewshot=fewshot, data=options.data / "benchmarks")
                )
                started = time.perf_counter()
                asked = ask(theirs, prepared, prepared.tasks[0])
                between = time.perf_counter()
                found = compare(prepared.tasks[0], asked, ask(ours, prepared, prepared.tasks[0]))
                seconds = f"{between - started:.1f} s, ours {time.perf_counter() - between:.1f} s"
                figures = "; ".join(f"{key} {a:.6g} {b:.6g}" for key, (a, b) in found.figures.items())
                print(
                    f"{model} {name}: {found.items} items, {found.differing} differ, "
                    f"log-likelihoods within {found.furthest:.2g}; {figures}; transformers {seconds}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
