"""The runtime of an EdgeForge bundle: numpy, onnxruntime, tokenizers, nothing else (jinja2 where a chat template is
used; TensorRT-LLM or vLLM in onnxruntime's place for bundles that are made for them).

This folder is copied into every bundle as BUNDLE/runtime/, and is importable from there without EdgeForge:

    sys.path.insert(0, "BUNDLE")
    import runtime

    model = runtime.load("BUNDLE")
    for chunk in model.chat([{"role": "user", "content": "Hello"}]):
        print(chunk.text, end="", flush=True)

Importing it is instant: numpy and onnxruntime are imported by `load`. Set PYTHONDONTWRITEBYTECODE=1 (or
`sys.dont_write_bytecode = True` before the import) to keep Python from adding __pycache__ to the bundle, which
`edgeforge verify` reports.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BundleError, CorruptBundle, MissingRequirement, UnusableBundle
from .integrity import verify
from .integrity import verify as verify_bundle
from .manifest import Manifest, read_manifest
from .parity import check_parity

if TYPE_CHECKING:
    from typing import Literal

    from .constraint import Constraint
    from .generate import TokenLogprob
    from .model import Model
    from .speculate import Speculation
    from .stream import Chunk, Stream, Timings, Usage

__all__ = [
    "BundleError",
    "Chunk",
    "Constraint",
    "CorruptBundle",
    "Manifest",
    "MissingRequirement",
    "Model",
    "Speculation",
    "Stream",
    "Timings",
    "TokenLogprob",
    "UnusableBundle",
    "Usage",
    "load",
    "read_manifest",
    "verify",
]


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    verify: "Literal['quick', 'full']" = "quick",
    device: "Literal['cpu', 'cuda'] | None" = None,
    batch: int | None = None,
    prefix_cache_bytes: int | None = None,
    exact: bool = False,
) -> "Model":
    """Check the bundle's files and requirements, and open it. `path` may be a folder of several bundles: then it is the
    one that suits this machine best (`variants`), and MissingRequirement says why none does.

    threads: for onnxruntime; None takes the physical cores this process may use. device: None takes the one that the
    bundle was built for; "cpu" runs a CUDA bundle of onnxruntime on the processor. A bundle of another engine runs in
    TensorRT-LLM or vLLM, whichever is installed and loads it. batch: up to so many answers are computed together, the
    rest wait in order; None takes 8 on the processor, and 1 on a GPU, where their caches take memory at once.
    prefix_cache_bytes: memory for keys and values of what was read and answered, which later prompts that begin alike
    need not compute; None takes as much as one answer of the whole context, 0 keeps nothing. exact: greedy answers of a
    quantized bundle are the same whatever was known, guessed or computed beside them; without it, rounding differs
    between one token and several, which can tip a token now and then. It costs a tenth of the decoding speed at 100
    tokens of context, 20 to 30 % at 200 to 800, and what batching gains.

    The weights are read at the first token, or by `Model.warm_up()`. UnusableBundle (not a bundle), CorruptBundle (a
    byte differs), MissingRequirement (no package, device or version).
    """
    from .choice import open_engine
    from .errors import UnusableBundle
    from .variants import bundle_in

    if (batch is not None and batch < 1) or (prefix_cache_bytes is not None and prefix_cache_bytes < 0):
        raise UnusableBundle("batch must be at least 1, and prefix_cache_bytes at least 0")
    bundle = bundle_in(Path(path))
    manifest = verify_bundle(bundle, verify)
    if verify == "full":
        check_parity(bundle, manifest)
    engine = open_engine(
        bundle,
        manifest,
        device=device,
        threads=threads,
        batch=batch,
        prefix_cache_bytes=prefix_cache_bytes,
        exact=exact,
    )
    # Only now, since it imports the packages that `open_engine` has looked for.
    from .model import Model

    return Model(bundle, manifest, engine)


def __getattr__(name: str) -> object:
    homes = {
        "Chunk": "stream",
        "Constraint": "constraint",
        "Model": "model",
        "Speculation": "speculate",
        "Stream": "stream",
        "Timings": "stream",
        "TokenLogprob": "generate",
        "Usage": "stream",
    }
    if name in homes:
        return getattr(import_module(f".{homes[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
