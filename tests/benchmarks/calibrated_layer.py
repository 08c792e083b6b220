"""What the calibrated pass takes for one decoder layer of Llama 3.1 8B: seconds, bytes, and what that makes of 32.

    python tests/benchmarks/calibrated_layer.py            # 8 and 24 sequences of 2,048 tokens, told for 128
    python tests/benchmarks/calibrated_layer.py --samples 128 --algorithm awq+gptq

The text's share grows with its length and is measured at two; the rest (factors and codes) does not. Weights and tokens
are random: neither decides the time. The child's peak is its largest resident set, of which `layer` is the part that
the issue allows for the weights: one layer's in float32.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from big_model import model_folder

LENGTH, WANTED, LAYERS = 2048, 128, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 24], help="sequences, one run each")
    parser.add_argument("--algorithm", default="gptq", choices=["gptq", "awq", "awq+gptq"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _measure(options)
        return
    model = model_folder("8b-layer")
    seconds = {}
    for samples in options.samples:
        words = ["--samples", str(samples), "--algorithm", options.algorithm, "--threads", str(options.threads)]
        command = [sys.executable, __file__, *words, "--device", options.device, "--child", str(model)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        seconds[samples] = found["seconds"]
        print(
            f"{samples} x {LENGTH} tokens: {found['seconds']:.1f} s a layer, peak {found['peak'] / 1e9:.2f} GB, "
            f"of which a layer's weights {found['layer'] / 1e9:.2f} GB",
            flush=True,
        )
    if len(seconds) > 1:
        (few, short), (many, long) = sorted(seconds.items())[0], sorted(seconds.items())[-1]
        each = (long - short) / (many - few)
        layer = short + each * (WANTED - few)
        print(
            f"{each:.2f} s a sequence and {short - each * few:.1f} s besides: {layer / 60:.1f} min for {WANTED} "
            f"sequences, {LAYERS * layer / 3600:.1f} h for {LAYERS} layers"
        )


def _measure(options: argparse.Namespace) -> None:
    """In a process of its own, whose peak is the pass's."""
    from edgeforge.hardware import load_target
    from edgeforge.model.checkpoint import open_checkpoint
    from edgeforge.pipeline.calibration_source import CalibrationTokens
    from edgeforge.pipeline.layerwise import Recipe, quantize_layers
    from edgeforge.planning import apply_overrides, make_plan

    checkpoint = open_checkpoint(str(options.child))
    plan = make_plan(checkpoint.architecture, apply_overrides(load_target("cpu"), group_size=128))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, checkpoint.architecture.vocab_size, (options.samples[0], LENGTH))
    steps: list[float] = []

    def progress(done: int, total: int) -> None:
        steps.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=options.child.parent) as folder:
        quantize_layers(
            checkpoint,
            plan,
            CalibrationTokens(ids=ids, text_sha256="0" * 64),
            Recipe(algorithm=options.algorithm, head=False),
            Path(folder) / "state",
            device=options.device,
            threads=options.threads,
            progress=progress,
            log=lambda line: print(line, file=sys.stderr),
        )
    layer = sum(
        4 * linear.out_features * linear.in_features
        for linear in checkpoint.architecture.linears()
        if linear.layer is not None
    )
    # two steps of gradients come first, and the head's statistics last
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": steps[-2] - steps[1], "peak": peak, "layer": layer}))


if __name__ == "__main__":
    main()
