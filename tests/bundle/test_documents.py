"""What travels with a bundle for others to read: official schemas and readers accept it, and it says what is true."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from built import Build
from google.protobuf import json_format
from huggingface_hub import ModelCard
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from tiny_bundle import SOURCE, make_bundle, make_engine_bundle

from edgeforge.bundle import seal, verify
from edgeforge.bundle.licences import llama_version
from edgeforge.bundle.names import spdx_id
from edgeforge.errors import UsageError
from edgeforge.model.hub import DEMO_SHA256
from edgeforge.runtime.integrity import sha256_of, tree
from edgeforge.runtime.manifest import SourceRecord, read_manifest

LLAMA = SourceRecord(
    kind="hub", name="meta-llama/Llama-3.1-8B-Instruct", revision="0" * 40, precision="BF16", fingerprint="sha256:ab"
)
DEMO = SourceRecord(kind="demo", name="demo", revision=None, precision="Q4_1", fingerprint="sha256:cd")
AGREEMENT = b"LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date: July 23, 2024\n"
CALIBRATED = {"calibration": {"tokens": 8192, "seed": 0, "text_sha256": "5" * 64}}
TARGET = {"name": "cpu", "scheme": "w4a16", "group_size": 32, "algorithm": "gptq"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(
        tmp_path_factory.mktemp("documents") / "llama",
        source=LLAMA,
        notices={"LICENSE": AGREEMENT},
        target=TARGET,
        plan=CALIBRATED,
    )


def report_of(bundle: Path) -> dict[str, object]:
    """As `edgeforge validate` writes it, as far as these documents look."""
    figures = {"perplexity": 12.5, "reference_perplexity": 12.25, "perplexity_ratio": 1.02, "same_top_token": 0.93}
    figures |= {"mean_kl_divergence": 0.0123456}
    checks = [{"figure": "mean_kl_divergence", "value": 0.0123456, "limit": 0.05, "verdict": "pass"}]
    return {
        **figures,
        **{f"{name}_standard_error": 0.001 for name in figures},
        "manifest_sha256": sha256_of(bundle / "manifest.json"),
        "text": {"name": "wiki.test.raw", "sha256": "7" * 64, "tokens": 4096},
        "protocol": "llama.cpp",
        "context": 512,
        "scored_tokens": 2048,
        "notes": ["A note."],
        "gate": {"confidence": 0.95, "checks": checks, "verdict": "pass"},
        "verdict": "pass",
        "seconds": 3.5,
    }


@pytest.fixture
def validated(tmp_path: Path) -> Path:
    bundle = make_bundle(tmp_path / "validated", source=DEMO, notices={"LICENSE": b"x"}, target=TARGET)
    (bundle / "reports").mkdir()
    (bundle / "reports/validation.json").write_text(json.dumps(report_of(bundle)))
    seal(bundle)
    verify(bundle)
    return bundle


# --- provenance


def statement_of(bundle: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads((bundle / "provenance.json").read_text())
    return value


@pytest.mark.parametrize("source", [LLAMA, DEMO, SOURCE])
def test_the_provenance_is_an_in_toto_statement_with_slsas_predicate(source: SourceRecord, tmp_path: Path) -> None:
    statement = statement_of(make_bundle(tmp_path / "b", source=source, plan=CALIBRATED))
    message = json_format.ParseDict(statement, StatementMessage())
    Statement.copy_from_pb(message).validate()  # type, at least one subject with a digest, a predicate
    predicate = json_format.ParseDict(statement["predicate"], Provenance())  # refuses fields that SLSA does not have
    # What slsa.dev/spec/v1.0/provenance calls required.
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert predicate.build_definition.build_type == "urn:edgeforge:build:v1"
    assert predicate.build_definition.HasField("external_parameters")
    assert predicate.run_details.builder.id.startswith("pkg:pypi/edgeforge@")
    for dependency in predicate.build_definition.resolved_dependencies:
        assert dependency.uri or dependency.digest  # resource_descriptor.md: one of them, or the content


def test_the_provenance_vouches_for_every_file_by_its_hash(llama: Path) -> None:
    statement = statement_of(llama)
    subjects = {item["name"]: item["digest"]["sha256"] for item in statement["subject"]}  # type: ignore[attr-defined]
    assert set(subjects) == set(read_manifest(llama).files) - {"provenance.json"}
    for path, digest in subjects.items():
        assert digest == hashlib.sha256((llama / path).read_bytes()).hexdigest()


def dependencies(bundle: Path) -> dict[str, dict[str, object]]:
    predicate = statement_of(bundle)["predicate"]
    listed = predicate["buildDefinition"]["resolvedDependencies"]  # type: ignore[index]
    return {item["name"]: item for item in listed}


def test_inputs_are_named_by_the_hashes_that_are_known(llama: Path, tmp_path: Path) -> None:
    found = dependencies(llama)
    assert found["checkpoint"]["uri"] == f"pkg:huggingface/meta-llama/Llama-3.1-8B-Instruct@{'0' * 40}"
    assert found["checkpoint"]["digest"] == {"gitCommit": "0" * 40}
    assert found["calibration text"]["digest"] == {"sha256": "5" * 64}
    demo = dependencies(make_bundle(tmp_path / "demo", source=DEMO))
    assert demo["checkpoint"]["digest"] == {"sha256": DEMO_SHA256}
    assert set(demo) == {"checkpoint"}
    local = dependencies(make_bundle(tmp_path / "local"))["checkpoint"]
    assert "digest" not in local, "a fingerprint is no hash of a file"
    assert local["annotations"] == {"fingerprint": "sha256:00", "precision": "F32"}


# --- a time only where it is told


def test_the_only_time_is_source_date_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_bundle(tmp_path / "plain")
    assert "timestamp" not in json.loads((plain / "sbom.cdx.json").read_text())["metadata"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    dated = make_bundle(tmp_path / "dated")
    assert json.loads((dated / "sbom.cdx.json").read_text())["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    details = statement_of(dated)["predicate"]["runDetails"]  # type: ignore[index]
    assert details["metadata"] == {"finishedOn": "2023-11-14T22:13:20Z"}
    differing = {path for path in tree(plain) if (plain / path).read_bytes() != (dated / path).read_bytes()}
    assert differing == {"SHA256SUMS", "manifest.json", "provenance.json", "sbom.cdx.json"}


@pytest.mark.parametrize("text", ["yesterday", "1e9", "9" * 30])
def test_a_time_that_is_none_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        make_bundle(tmp_path / "b")


# --- the bill of materials


def check_sbom(bundle: Path) -> dict[str, object]:
    """The document, held against the official schema with every format that it names."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (bundle / "sbom.cdx.json").read_text()
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert problem is None, problem
    document: dict[str, object] = json.loads(text)
    return document


def test_the_official_schema_accepts_the_bill_of_materials(llama: Path, validated: Path, tmp_path: Path) -> None:
    for bundle in (llama, validated, make_bundle(tmp_path / "local"), make_engine_bundle(tmp_path / "engine")):
        check_sbom(bundle)


def test_the_schema_would_refuse_a_wrong_one(llama: Path, tmp_path: Path) -> None:
    document = check_sbom(llama)
    document["components"] = [{"type": "no such type", "name": "x"}]
    (tmp_path / "sbom.cdx.json").write_text(json.dumps(document))
    with pytest.raises(AssertionError):
        check_sbom(tmp_path)


def test_the_bill_of_materials_names_the_model_its_origin_and_its_data(llama: Path, validated: Path) -> None:
    document = check_sbom(llama)
    model = document["metadata"]["component"]  # type: ignore[index]
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256_of(llama / "manifest.json")}]
    assert model["licenses"] == [{"license": {"name": "Llama 3.1 Community License"}}]
    assert model["pedigree"]["ancestors"][0]["purl"].startswith("pkg:huggingface/meta-llama/")
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": "data:calibration"}]
    components = {item["bom-ref"]: item for item in document["components"]}  # type: ignore[attr-defined]
    assert components["data:calibration"]["hashes"][0]["content"] == "5" * 64
    assert components["pkg:pypi/onnxruntime"]["properties"][0]["value"] == ">=1.23"
    later = {item["bom-ref"]: item for item in check_sbom(validated)["components"]}  # type: ignore[attr-defined]
    assert (later["data:validation"]["name"], later["data:validation"]["hashes"][0]["content"]) == (
        "wiki.test.raw",
        "7" * 64,
    )


# --- sums


def test_sha256sum_reads_the_sums_of_a_real_build(stories_int4: Build) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=stories_int4.bundle, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(tree(stories_int4.bundle)) - 1


# --- the card


def card_of(bundle: Path) -> ModelCard:
    return ModelCard((bundle / "README.md").read_text(encoding="utf-8"))


def test_the_hub_reads_the_cards_front_matter(llama: Path) -> None:
    data = card_of(llama).data
    assert data.base_model == "meta-llama/Llama-3.1-8B-Instruct"
    assert data.license == "llama3.1"
    assert data.library_name == "onnxruntime"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["edgeforge", "llama", "4-bit", "int4", "w4a16", "onnx", "onnxruntime"]
    told = data.to_dict()
    assert (told["base_model_relation"], told["quantization"]) == ("quantized", "w4a16")


def test_a_llamas_card_says_so_and_others_do_not(llama: Path, validated: Path) -> None:
    assert "**Built with Llama**" in card_of(llama).text
    assert "Llama 3.1 is licensed under the Llama 3.1 Community License" in card_of(llama).text
    assert "Llama" not in card_of(validated).text


def test_the_card_shows_what_was_measured_and_only_then(llama: Path, validated: Path) -> None:
    assert "was not compared with its original" in card_of(llama).text
    text = card_of(validated).text
    assert "| perplexity | 12.500 ± 0.001 | 12.250 ± 0.001 |" in text
    assert "| mean KL divergence | 0.01235 ± 0.00100 | 0 |" in text
    assert "2,048 tokens of wiki.test.raw" in text
    assert "confidence: **passed**" in text
    assert "3.5" not in text, "timings differ from run to run"


def test_a_report_of_another_manifest_is_not_shown(validated: Path) -> None:
    report = report_of(validated) | {"manifest_sha256": "0" * 64}
    (validated / "reports/validation.json").write_text(json.dumps(report))
    seal(validated)
    assert "was not compared with its original" in card_of(validated).text
    verify(validated)


def test_sealing_twice_changes_nothing(validated: Path) -> None:
    before = {path: (validated / path).read_bytes() for path in tree(validated)}
    seal(validated)
    assert {path: (validated / path).read_bytes() for path in tree(validated)} == before


def test_a_model_without_terms_or_hub_id_claims_none(tmp_path: Path) -> None:
    data = card_of(make_bundle(tmp_path / "b")).data
    assert data.license is None
    assert data.base_model is None
    own = card_of(make_bundle(tmp_path / "own", notices={"LICENSE": b"All mine.\n"})).data.to_dict()
    assert (own["license"], own["license_link"]) == ("other", "LICENSE")


@pytest.mark.slow
def test_the_cards_commands_answer(demo_int4: Build, tmp_path: Path) -> None:
    text = (demo_int4.bundle / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "BUNDLE").symlink_to(demo_int4.bundle)
    import sys

    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


# --- what is a Llama


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "3.1"),
        ("meta-llama/Llama-2-7b-hf", "2"),
        ("org/Llama-3.2-1B-finetuned", "3.2"),
        ("org/my-llama3-8b", "3"),
        ("meta-llama/LlamaGuard-7b", ""),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", None),
        ("openlm-research/open_llama_3b", None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", None),
        (None, None),
    ],
)
def test_a_llama_is_known_by_its_name(name: str | None, version: str | None) -> None:
    source = SourceRecord(kind="hub", name=name, revision=None, precision="BF16", fingerprint="sha256:ab")
    assert llama_version(source, []) == version
    assert llama_version(source, [AGREEMENT.decode()]) == "3.1"


def test_well_known_licences_are_known_by_their_text() -> None:
    apache = (Path(__file__).resolve().parents[2] / "LICENSE").read_text()
    assert spdx_id(apache) == "Apache-2.0"
    assert spdx_id("All rights reserved.") is None
