"""The report at a build's end: true schemes, figures with errors, a verdict, commands that can be pasted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgeforge.cli.report import (
    build_document,
    build_text,
    check_gate,
    next_commands,
    plan_document,
    stored_text,
)
from edgeforge.errors import GateFailed
from edgeforge.hardware import load_target
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.checkpoint import StoredGrid, open_checkpoint
from edgeforge.pipeline import BuildResult
from edgeforge.planning import apply_overrides, make_plan
from edgeforge.runtime.manifest import (
    Determinism,
    GenerationRecord,
    Manifest,
    ModelRecord,
    Requirements,
    SourceRecord,
)
from edgeforge.validation.gate import Check, GateResult, Verdict
from edgeforge.validation.report import ChunkFigures, Histogram, Reference, Text, ValidationReport


@pytest.fixture(scope="module")
def architecture(stories: Path) -> LlamaArchitecture:
    return open_checkpoint(str(stories)).architecture


def validation(verdict: Verdict) -> ValidationReport:
    figures = ChunkFigures(perplexity=23.3, reference_perplexity=23.2, mean_kl_divergence=0.15, same_top_token=0.9)
    check = Check(
        figure="mean_kl_divergence", value=0.15, limit=0.1, lower_bound=0.14, upper_bound=0.16, verdict=verdict
    )
    return ValidationReport(
        edgeforge_version="0.1.0",
        manifest_sha256="ab" * 32,
        target="cpu",
        reference=Reference(name="demo", precision="Q4_1", fingerprint="sha256:00", is_source=True),
        text=Text(name="built-in text", sha256="cd" * 32, tokens=4096),
        protocol="llama.cpp",
        context=512,
        scored_tokens=2040,
        perplexity=23.34,
        perplexity_standard_error=1.5,
        reference_perplexity=23.24,
        reference_perplexity_standard_error=1.49,
        perplexity_ratio=1.0043,
        perplexity_ratio_standard_error=0.0018,
        mean_kl_divergence=0.15,
        mean_kl_divergence_standard_error=0.002,
        median_kl_divergence=0.1,
        p99_kl_divergence=1.0,
        max_kl_divergence=2.0,
        same_top_token=0.9,
        same_top_token_standard_error=0.004,
        kl_divergence_histogram=Histogram(edges=(0.0, 1.0, 2.0), counts=(2000, 40)),
        chunks=(figures,),
        gate=GateResult(confidence=0.95, checks=(check,), verdict=verdict),
        notes=("The original is itself 4-bit.",),
        seconds=8.7,
    )


@pytest.fixture(scope="module")
def result(architecture: LlamaArchitecture) -> BuildResult:
    manifest = Manifest(
        schema_version=1,
        edgeforge_version="0.1.0",
        target={},
        profile={},
        plan={},
        source=SourceRecord(kind="demo", name="demo", revision=None, precision="Q4_1", fingerprint="sha256:00"),
        model=ModelRecord(
            backend="onnx",
            graph="model/model.onnx",
            scoring_graph="model/scoring.onnx",
            weights=None,
            activations="f32",
            kv_cache="f32",
            context_length=512,
            vocab_size=512,
            num_hidden_layers=5,
            num_key_value_heads=4,
            head_dim=8,
            bos_token_id=1,
            eos_token_ids=(2,),
            tokenizer="model/tokenizer.json",
            chat_template=None,
            bos_token="<s>",
            eos_token="</s>",
            add_bos=True,
            generation=GenerationRecord(),
        ),
        requirements=Requirements(packages={}, provider="CPUExecutionProvider"),
        determinism=Determinism(reproducible=True, note=""),
        files={},
    )
    return BuildResult(
        bundle=Path("ignored"),
        plan=make_plan(architecture, load_target("cpu")),
        manifest=manifest,
        size_bytes=115_000_000,
        seconds=12.34,
        validation=validation("pass"),
    )


def test_the_text_tells_bundle_size_figures_verdict_and_what_to_try(result: BuildResult) -> None:
    text = build_text(result, Path("artifacts/demo-cpu"))
    for expected in (
        "bundle          artifacts/demo-cpu\n",
        "115 MB, built in 12.3 s",
        "23.34 ± 1.50, original 23.24 ± 1.49, ratio 1.0043 ± 0.0018",
        "KL divergence   0.15000 ± 0.00200",
        "90.0 ± 0.4 %",
        "2,040 tokens of built-in text",
        "passed (mean KL divergence at most 0.1; confidence 95%)",
        "The original is itself 4-bit.",
        '  python artifacts/demo-cpu "What is the capital of France?"\n',
        "  edgeforge verify artifacts/demo-cpu\n",
    ):
        assert expected in text


def test_skipped_validation_is_said(result: BuildResult) -> None:
    assert "validation    skipped" in build_text(replace(result, validation=None), Path("out"))


def test_the_json_is_json_and_carries_the_validation(result: BuildResult) -> None:
    document = json.loads(json.dumps(build_document(result, Path("out")), allow_nan=False))
    assert document["bundle"] == "out"
    assert document["size_bytes"] == 115_000_000
    assert document["verdict"] == "pass"
    assert document["validation"]["perplexity"] == 23.34
    assert document["validation"]["mean_kl_divergence"] == 0.15
    assert document["plan"]["decode_tokens_per_s"] > 0


@pytest.mark.parametrize("verdict", ["pass", "undecided"])
def test_only_a_failed_gate_raises(verdict: Verdict) -> None:
    check_gate(validation(verdict), Path("out"))
    with pytest.raises(GateFailed) as caught:
        check_gate(validation("fail"), Path("out"))
    assert "mean kl divergence 0.15 exceeds 0.1" in caught.value.message.lower()
    assert caught.value.exit_code == 5


def test_a_folder_with_a_space_can_be_pasted() -> None:
    assert "edgeforge verify 'my models/demo cpu'" in next_commands(Path("my models/demo cpu"))


def test_a_bundle_without_its_engine_says_what_builds_it() -> None:
    commands = next_commands(Path("my models/orin"), "build-on-device.sh")
    assert "sh 'my models/orin/build-on-device.sh'" in commands and "python" not in commands


def test_stored_as_tells_what_linears_get_and_not_what_was_asked(architecture: LlamaArchitecture) -> None:
    target = apply_overrides(load_target("cpu"), group_size=128)
    assert stored_text(make_plan(architecture, target)) == (
        "w4a16 in groups of 64; w4a16 in groups of 128; embedding and head w8a16 in groups of 64"
    )
    grid = StoredGrid(bits=4, group_size=32, offset=True)
    stored = {linear.name: grid for linear in architecture.linears()}
    assert "in groups of 32" in stored_text(make_plan(architecture, target, stored=stored))
    unquantized = make_plan(architecture, apply_overrides(load_target("cpu"), scheme="f32"))
    assert stored_text(unquantized).startswith("f32;")


def test_an_untied_head_is_told_apart(architecture: LlamaArchitecture) -> None:
    target = load_target("cpu")
    text = stored_text(make_plan(replace(architecture, tie_word_embeddings=False), target))
    assert f"; embedding {target.embedding} in" in text
    assert f"; head {target.lm_head} in" in text


def test_the_plans_headline_has_units(result: BuildResult) -> None:
    assert set(plan_document(result.plan)) == {
        "backend",
        "algorithm",
        "rotate",
        "engine",
        "scheme",
        "group_size",
        "context",
        "memory_bytes",
        "weights_bytes",
        "available_bytes",
        "disk_bytes",
        "decode_tokens_per_s",
    }
