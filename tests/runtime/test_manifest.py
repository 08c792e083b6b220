"""The manifest is read strictly: what is wrong is named by field, and the JSON Schema agrees with the reader."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
from tiny_bundle import make_bundle, make_engine_bundle

from edgeforge import bundle as bundle_package
from edgeforge.bundle import manifest_to_json
from edgeforge.runtime.errors import BundleError, CorruptBundle, UnusableBundle
from edgeforge.runtime.manifest import EngineRecord, is_safe_path, manifest_from_json, read_manifest

SCHEMA = json.loads(Path(bundle_package.__file__).with_name("manifest.schema.json").read_text())


@pytest.fixture
def document(tiny: Path) -> dict:
    return json.loads((tiny / "manifest.json").read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine that was built on some H100."""
    return make_engine_bundle(
        tmp_path_factory.mktemp("bundles") / "built",
        backend="trtllm-engine",
        engine="tensorrt",
        tensor_parallel=2,
        compute_capability="9.0",
        script="build-on-device.sh",
        versions={"tensorrt_llm": "1.2.1", "tensorrt": "10.14.1", "cuda": "13.0", "driver": "580.82"},
    )


@pytest.fixture
def engine_document(built: Path) -> dict:
    return json.loads((built / "manifest.json").read_text())


def change(document: dict, path: str, value: object) -> dict:
    changed = copy.deepcopy(document)
    *parents, last = path.split("/")
    place = changed
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return changed


def test_reading_is_the_inverse_of_writing(tiny: Path, document: dict) -> None:
    manifest = read_manifest(tiny)
    assert manifest_to_json(manifest) == document
    assert manifest_from_json(document) == manifest


def test_the_schema_accepts_what_is_written(document: dict, engine_document: dict) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    jsonschema.validate(engine_document, SCHEMA)


def test_a_bundle_with_an_engine_reads_back_as_it_was_written(built: Path, engine_document: dict) -> None:
    manifest = read_manifest(built)
    assert manifest_to_json(manifest) == engine_document
    assert manifest.engine == EngineRecord(
        name="tensorrt",
        tensor_parallel=2,
        pipeline_parallel=1,
        compute_capability="9.0",
        state="ready",
        script="build-on-device.sh",
        versions={"tensorrt_llm": "1.2.1", "tensorrt": "10.14.1", "cuda": "13.0", "driver": "580.82"},
    )
    assert manifest.model.graph is None
    assert manifest.requirements.provider is None
    roles = {path: record.role for path, record in manifest.files.items()}
    assert roles["model/engine/rank0.engine"] == "engine"
    assert roles["build-on-device.sh"] == "script"


def test_an_onnx_manifest_has_no_engine_and_may_say_so(document: dict) -> None:
    """Bundles made before there were engines stay readable, and new ones readable to old runtimes."""
    assert "engine" not in document
    told = change(document, "engine", None)
    jsonschema.validate(told, SCHEMA)
    assert manifest_from_json(told) == manifest_from_json(document)


def test_an_engine_that_nothing_ties_to_a_gpu_says_so(tmp_path: Path) -> None:
    document = json.loads((make_engine_bundle(tmp_path / "b") / "manifest.json").read_text())
    jsonschema.validate(document, SCHEMA)
    engine = manifest_from_json(document).engine
    assert engine is not None
    assert (engine.compute_capability, engine.script, dict(engine.versions)) == (None, None, {})


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("schema_version", "1", "schema_version must be an integer"),
        ("schema_version", 0, "schema_version"),
        ("edgeforge_version", ..., "edgeforge_version is missing"),
        ("target", [], "target must be an object"),
        ("surprise", 1, "surprise is not a field"),
        ("source/revision", 7, "source.revision must be a string"),
        ("source/path", "/home/me", "source.path is not a field"),
        ("model/context_length", True, "model.context_length must be an integer"),
        ("model/context_length", 0, "model.context_length must be at least 1"),
        ("model/head_dim", 16.5, "model.head_dim must be an integer"),
        ("model/eos_token_ids", [1, "2"], "model.eos_token_ids must be a list of integers"),
        ("model/add_bos", 1, "model.add_bos must be true or false"),
        ("model/backend", "gguf", "model.backend is 'gguf'"),
        ("model/generation/top_k", "50", "model.generation.top_k must be an integer"),
        ("requirements/provider", "TPU", "requirements.provider is 'TPU'"),
        ("requirements/packages", {"numpy": 2}, "requirements.packages.numpy must be a string"),
        ("requirements/packages", {"numpy": "==2"}, "requirements.packages.numpy is '==2'"),
        ("determinism/reproducible", "yes", "determinism.reproducible must be true or false"),
        ("files", {"../etc/passwd": {"sha256": "0" * 64, "size": 1, "role": "x"}}, "'../etc/passwd'"),
        ("files", {"/etc/passwd": {"sha256": "0" * 64, "size": 1, "role": "x"}}, "'/etc/passwd'"),
        ("files", {"a": {"sha256": "0" * 63, "size": 1, "role": "x"}}, "files.a.sha256"),
        ("files", {"a": {"sha256": "0" * 64, "size": -1, "role": "x"}}, "files.a.size"),
    ],
)
def test_a_wrong_field_is_named_and_the_schema_refuses_it_too(
    document: dict, path: str, value: object, named: str
) -> None:
    assert_refused(change(document, path, value), named)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("engine/name", "llama.cpp", "engine.name is 'llama.cpp'"),
        ("engine/state", "maybe", "engine.state is 'maybe'"),
        ("engine/script", ..., "engine.script is missing"),
        ("engine/tensor_parallel", 0, "engine.tensor_parallel must be at least 1"),
        ("engine/pipeline_parallel", True, "engine.pipeline_parallel must be an integer"),
        ("engine/compute_capability", "sm90", "engine.compute_capability is 'sm90'"),
        ("engine/compute_capability", None, "compute_capability must be given"),
        ("engine/versions", {"cuda": "13.0"}, "versions must have tensorrt_llm"),
        ("engine/versions", {"tensorrt_llm": 1}, "engine.versions.tensorrt_llm must be a string"),
        ("engine/versions/torch", "2.9", "engine.versions.torch is unknown"),
        ("engine/surprise", 1, "engine.surprise is not a field"),
        ("engine", ..., "engine is missing, with backend trtllm-engine"),
        ("engine", None, "engine is missing, with backend trtllm-engine"),
        ("engine", [], "engine must be an object"),
        ("model/graph", "model/config.json", "model.graph is not null, with backend trtllm-engine"),
        ("model/runtime_graph", "model/config.json", "model.runtime_graph is not null, with backend trtllm-engine"),
        ("model/backend", "onnx", "model.graph is null, with backend onnx"),
        ("requirements/provider", "CPUExecutionProvider", "requirements.provider is not null"),
    ],
)
def test_a_wrong_engine_is_named_and_the_schema_refuses_it_too(
    engine_document: dict, path: str, value: object, named: str
) -> None:
    assert_refused(change(engine_document, path, value), named)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("model/graph", "model.graph is null, with backend onnx"),
        ("model/scoring_graph", "model.scoring_graph is null"),
        ("requirements/provider", "requirements.provider is null"),
    ],
)
def test_a_graph_bundle_needs_its_graphs_and_its_provider(document: dict, path: str, named: str) -> None:
    assert_refused(change(document, path, None), named)


def test_a_graph_bundle_has_no_engine(document: dict, engine_document: dict) -> None:
    engine = engine_document["engine"] | {"script": None}
    assert_refused(change(document, "engine", engine), "engine is not null, with backend onnx")


def assert_refused(changed: dict, named: str) -> None:
    """By the reader, in one line that names the field, and by the schema."""
    with pytest.raises((UnusableBundle, CorruptBundle), match=r"manifest\.json") as caught:
        manifest_from_json(changed)
    assert named in caught.value.message
    assert "\n" not in caught.value.message
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, SCHEMA)


def test_a_newer_manifest_says_update(document: dict) -> None:
    with pytest.raises(UnusableBundle, match="schema version 2") as caught:
        manifest_from_json(change(document, "schema_version", 2))
    assert "update" in (caught.value.hint or "")


def test_a_bundle_from_before_there_was_a_runtime_graph_is_read_and_written_without(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "older", runtime_graph=False)
    assert "runtime_graph" not in (bundle / "manifest.json").read_text()
    manifest = read_manifest(bundle)
    assert manifest.model.runtime_graph is None
    assert manifest_from_json(manifest_to_json(manifest)) == manifest


def test_a_model_file_that_is_not_listed_is_refused(document: dict, engine_document: dict) -> None:
    with pytest.raises(UnusableBundle, match=r"model\.runtime_graph"):
        manifest_from_json(change(document, "model/runtime_graph", "model/other.onnx"))
    with pytest.raises(UnusableBundle, match=r"model\.graph"):
        manifest_from_json(change(document, "model/graph", "model/other.onnx"))
    with pytest.raises(UnusableBundle, match=r"engine\.script is 'other.sh'"):
        manifest_from_json(change(engine_document, "engine/script", "other.sh"))


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_manifest_that_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(UnusableBundle, match="not a JSON object"):
        manifest_from_json(value)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UnusableBundle, match="not a bundle") as caught:
        read_manifest(tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_a_manifest_that_is_no_json_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CorruptBundle):
        read_manifest(tmp_path)


@pytest.mark.parametrize("path", ["a", "a/b.c", ".hidden", "a/..b", "ünï/日本"])
def test_plain_paths_are_safe(path: str) -> None:
    assert is_safe_path(path)


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\\b", "C:/x", "a\nb", "a\0b", "a*"]
)
def test_other_paths_are_not(path: str) -> None:
    assert not is_safe_path(path)


def test_every_error_of_the_runtime_has_an_exit_code_of_the_toolchain() -> None:
    assert {cls.__name__: cls.exit_code for cls in BundleError.__subclasses__()} == {
        "UnusableBundle": 3,
        "CorruptBundle": 6,
        "MissingRequirement": 7,
    }
