"""A bundle is complete, the same bytes every time, carries its licences, and appears whole or not at all."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from tiny_bundle import Shape, make_bundle

from edgeforge.bundle import (
    manifest_to_json,
    publish_directory,
    runtime_files,
    seal,
    staging_directory,
    verify,
)
from edgeforge.bundle.assemble import assemble
from edgeforge.bundle.licences import licence_files
from edgeforge.errors import UsageError
from edgeforge.runtime.errors import CorruptBundle
from edgeforge.runtime.integrity import tree
from edgeforge.runtime.manifest import SourceRecord, read_manifest

SOURCE = SourceRecord(kind="hub", name="org/model", revision="abc", precision="BF16", fingerprint="sha256:12")


def contents(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in tree(folder)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def test_two_bundles_of_the_same_inputs_are_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    again = make_bundle(tmp_path / "elsewhere" / "other name")
    assert contents(again) == contents(bundle)
    assert contents(make_bundle(tmp_path / "seed", seed=1)) != contents(bundle)


def test_no_file_tells_the_time_or_the_machine(bundle: Path) -> None:
    for path, data in contents(bundle).items():
        assert str(bundle.parent).encode() not in data, path
    for path in ("manifest.json", "sbom.cdx.json", "provenance.json", "README.md", "NOTICE", "LICENSE"):
        assert not re.search(r"20\d\d-\d\d-\d\d", (bundle / path).read_text()), path


def test_the_manifest_lists_every_file_with_its_hash_size_and_role(bundle: Path) -> None:
    manifest = verify(bundle)
    files = contents(bundle)
    outside = {"manifest.json", "SHA256SUMS", "README.md", "sbom.cdx.json"}
    assert list(manifest.files) == sorted(set(files) - outside)
    for path, record in manifest.files.items():
        assert record.sha256 == hashlib.sha256(files[path]).hexdigest()
        assert record.size == len(files[path])
    roles = {path: record.role for path, record in manifest.files.items() if not path.startswith("runtime/")}
    assert roles == {
        "LICENSE": "licence",
        "NOTICE": "notice",
        "__main__.py": "entry",
        "edgeforge_runtime.py": "runtime",
        "model/chat_template.jinja": "chat_template",
        "model/model.onnx": "graph",
        "model/model.onnx.data": "weights",
        "model/runtime.onnx": "runtime_graph",
        "model/scoring.onnx": "scoring_graph",
        "model/tokenizer.json": "tokenizer",
        "provenance.json": "provenance",
    }
    assert {path for path in manifest.files if path.startswith("runtime/")} == set(
        runtime_files(manifest.model.backend, manifest.requirements.packages)
    ) - {"__main__.py", "edgeforge_runtime.py"}


def test_hashes_already_known_are_taken(bundle: Path, tmp_path: Path) -> None:
    """A wrong one shows that it was taken; verification then finds it."""
    staging = make_bundle(tmp_path / "b")
    manifest = read_manifest(staging)
    assemble(
        staging,
        target=manifest.target,
        profile=manifest.profile,
        plan=manifest.plan,
        source=manifest.source,
        model=manifest.model,
        requirements=manifest.requirements,
        determinism=manifest.determinism,
        notices={},
        digests={"model/model.onnx.data": "0" * 64},
    )
    with pytest.raises(CorruptBundle, match=r"model/model\.onnx\.data"):
        verify(staging)


def test_a_record_that_could_not_be_read_back_fails_at_the_build(tmp_path: Path) -> None:
    staging = make_bundle(tmp_path / "b")
    manifest = read_manifest(staging)
    with pytest.raises(ValueError, match="Out of range float"):
        assemble(
            staging,
            target=manifest.target,
            profile=manifest.profile,
            plan={"decode_tokens_per_s": float("nan")},
            source=manifest.source,
            model=manifest.model,
            requirements=manifest.requirements,
            determinism=manifest.determinism,
            notices={},
        )


def test_reports_are_sealed_but_outside_the_manifest(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    before = (bundle / "manifest.json").read_bytes()
    (bundle / "reports").mkdir()
    (bundle / "reports/bench.json").write_text("{}")
    with pytest.raises(CorruptBundle, match=r"reports/bench\.json is not in SHA256SUMS"):
        verify(bundle)
    seal(bundle)
    verify(bundle)
    assert (bundle / "manifest.json").read_bytes() == before
    (bundle / "reports/bench.json").write_text("[]")
    with pytest.raises(CorruptBundle, match=r"reports/bench\.json was changed"):
        verify(bundle)


def test_sealing_does_not_launder_a_changed_file(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    (bundle / "model/tokenizer.json").write_bytes(b"{}")
    seal(bundle)
    with pytest.raises(CorruptBundle, match=r"model/tokenizer\.json"):
        verify(bundle)


def test_the_bill_of_materials_names_files_and_packages(bundle: Path) -> None:
    document = json.loads((bundle / "sbom.cdx.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    manifest = read_manifest(bundle)
    files = {item["name"]: item["hashes"][0]["content"] for item in document["components"] if item["type"] == "file"}
    assert files == {path: record.sha256 for path, record in manifest.files.items()}
    libraries = {item["purl"] for item in document["components"] if item["type"] == "library"}
    assert libraries == {"pkg:pypi/onnxruntime", "pkg:pypi/numpy"}
    references = [item["bom-ref"] for item in document["components"]] + [document["metadata"]["component"]["bom-ref"]]
    assert len(set(references)) == len(references)


def test_the_manifests_json_holds_plain_values(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest_to_json(manifest) == json.loads((bundle / "manifest.json").read_text())


# --- licences


def licence(notices: dict[str, bytes], source: SourceRecord = SOURCE) -> dict[str, bytes]:
    return licence_files(source, notices, version="1.2.3")


def test_the_models_licence_is_the_bundles() -> None:
    files = licence(
        {"LICENSE": b"terms\n", "LICENSE-third-party": b"more", "NOTICE": b"Copyright A\n", "USE_POLICY.md": b"be good"}
    )
    assert files["LICENSE"] == b"terms\n"
    assert files["licenses/LICENSE-third-party"] == b"more"
    assert files["licenses/USE_POLICY.md"] == b"be good"
    notice = files["NOTICE"].decode()
    assert "EdgeForge 1.2.3 from org/model at revision abc" in notice
    assert "were changed" in notice
    assert notice.endswith("Copyright A\n")
    assert set(files) == {"LICENSE", "NOTICE", "licenses/LICENSE-third-party", "licenses/USE_POLICY.md"}


def test_a_missing_licence_is_said() -> None:
    assert b"without a licence file" in licence({})["LICENSE"]


@pytest.mark.parametrize(
    ("name", "text", "version"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", b"", " 3.1"),
        ("meta-llama/Meta-Llama-3-8B", b"", " 3"),
        (None, b"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT", " 3.2"),
    ],
)
def test_a_llama_is_attributed_as_its_licence_asks(name: str | None, text: bytes, version: str) -> None:
    source = SourceRecord(kind="hub", name=name, revision=None, precision="BF16", fingerprint="sha256:12")
    notice = licence({"LICENSE.txt": text}, source)["NOTICE"].decode()
    assert "\nBuilt with Llama\n" in notice
    assert f"Llama{version} is licensed under the Llama{version} Community License, Copyright © Meta" in notice


def test_other_models_are_not() -> None:
    assert b"Llama" not in licence({"LICENSE": b"Apache"})["NOTICE"]


def test_a_notice_cannot_be_written_elsewhere() -> None:
    assert set(licence({"../../evil": b""})) == {"LICENSE", "NOTICE", "licenses/_.._evil"}


# --- publishing


def test_a_bundle_appears_by_rename(tmp_path: Path) -> None:
    destination = tmp_path / "made" / "here"
    with staging_directory(destination) as staging:
        assert staging.parent == destination.parent
        assert re.fullmatch(r"\.here\.partial-[0-9a-f]{8}", staging.name)
        (staging / "manifest.json").write_text("{}")
        assert not destination.exists()
        publish_directory(staging, destination)
    assert [path.name for path in destination.parent.iterdir()] == ["here"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def build() -> None:
        with staging_directory(tmp_path / "out") as staging:
            (staging / "weights").write_text("half")
            raise error

    with pytest.raises(error):
        build()
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_kept_unless_it_is_a_bundle_to_be_replaced(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    (destination / "thesis.tex").write_text("years")
    for replace in (False, True):
        with pytest.raises(UsageError), staging_directory(destination) as staging:
            publish_directory(staging, destination, replace=replace)
    assert (destination / "thesis.tex").read_text() == "years"


def test_replacing_puts_the_new_bundle_in_place_and_leaves_nothing_else(tmp_path: Path) -> None:
    destination = make_bundle(tmp_path / "out")
    with staging_directory(destination) as staging:
        make_bundle(staging / "inner", Shape(layers=1))
        with pytest.raises(UsageError, match="exists"):
            publish_directory(staging / "inner", destination)
        publish_directory(staging / "inner", destination, replace=True)
    assert read_manifest(destination).model.num_hidden_layers == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
