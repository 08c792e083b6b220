"""What a bundle says of itself: the manifest's records, from the plan and the checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict

from edgeforge import backends
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.planning import BuildPlan, plan_to_json
from edgeforge.quantization.calibration import Calibration
from edgeforge.runtime.manifest import Determinism, GenerationRecord, ModelRecord, Requirements, SourceRecord

RUNTIME_PACKAGES = {"numpy": ">=1.26", "tokenizers": ">=0.20"}
REPRODUCIBLE = Determinism(
    reproducible=True, note="the same checkpoint, target and EdgeForge version give the same bytes on any machine"
)
CALIBRATED = Determinism(
    reproducible=True,
    note="the same checkpoint, target, EdgeForge version and scales of activations give the same bytes on any machine; "
    "scales measured on another kind of processor may rarely differ in their last bit (--save-calibration keeps them)",
)
LEARNED = Determinism(
    reproducible=True,
    note="the same checkpoint, target, calibration text and EdgeForge version give the same bytes on processors of one "
    "kind, on any number of threads; on others the last bits of a matrix product may choose other codes",
)
NOT_REPRODUCIBLE = Determinism(
    reproducible=False, note="the graph is torch's and optimum's, which do not promise the same bytes"
)
ENGINE = Determinism(
    reproducible=False,
    note="TensorRT chooses kernels by measuring them, so that engine/ differs from build to build; the checkpoint that "
    "it was built from, model/, does not",
)


def determinism(calibration: Calibration, *, has_engine: bool, reads_text: bool = False) -> Determinism:
    """Of a bundle that EdgeForge writes itself."""
    if has_engine:
        return ENGINE
    if reads_text:
        return LEARNED
    return CALIBRATED if calibration.inputs else REPRODUCIBLE


def source_record(checkpoint: Checkpoint) -> SourceRecord:
    return SourceRecord(**asdict(checkpoint.source), fingerprint=checkpoint.fingerprint)


def plan_record(
    plan: BuildPlan,
    calibration: Calibration,
    samples: CalibrationTokens | None = None,
    allocation: Mapping[str, object] | None = None,
    rotation: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The plan, and what its codes and scales of activations were found with; the plan's reader passes over that.

    `rotation`: of the checkpoint that was quantized.
    """
    document, told = plan_to_json(plan), dict[str, object]()
    if calibration.inputs:
        told |= {"tokens": calibration.tokens, "text_sha256": calibration.text_sha256}
    if samples is not None:
        count, length = samples.ids.shape
        told |= {"samples": count, "length": length, "seed": samples.seed}
        told |= {"tokens": samples.ids.size, "text_sha256": samples.text_sha256}
    document |= {"calibration": told} if told else {}
    document |= {"rotation": dict(rotation)} if rotation else {}
    return document | ({"allocation": dict(allocation)} if allocation else {})


def requirements(needs: backends.Requirements) -> Requirements:
    """What the backend's files need, and what the runtime around them needs."""
    return Requirements(packages={**needs.packages, **RUNTIME_PACKAGES}, provider=needs.provider)


def model_record(plan: BuildPlan, checkpoint: Checkpoint, *, backend: str, files: backends.ModelFiles) -> ModelRecord:
    """The files under model/, by their names there, and what the runtime must know of the decoder."""
    a, target, tokenizer = plan.architecture, plan.target, checkpoint.tokenizer
    template = next((name for name in tokenizer.files if name.endswith(".jinja")), None)
    return ModelRecord(
        backend=backend,
        graph=files.graph and f"model/{files.graph}",
        scoring_graph=files.scoring_graph and f"model/{files.scoring_graph}",
        runtime_graph=files.runtime_graph and f"model/{files.runtime_graph}",
        weights=f"model/{files.weights[0]}" if len(files.weights) == 1 else None,
        activations=target.activations,
        kv_cache=target.kv_cache,
        context_length=target.context,
        vocab_size=a.vocab_size,
        num_hidden_layers=a.num_hidden_layers,
        num_key_value_heads=a.num_key_value_heads,
        head_dim=a.head_dim,
        bos_token_id=a.bos_token_id,
        eos_token_ids=a.eos_token_ids,
        tokenizer="model/tokenizer.json",
        chat_template=template and f"model/{template}",
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        add_bos=tokenizer.add_bos,
        generation=GenerationRecord(**asdict(checkpoint.generation)),
    )
