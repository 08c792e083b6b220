"""A bundle goes to a registry and comes back the same, only what is new travels, and others can read it."""

import json
import shutil
import urllib.request
from pathlib import Path

import pytest
from faults import Proxy
from published import Run, contents, document, incompressible, only, refused, with_file
from registries import RunningRegistry
from tiny_bundle import Shape, make_bundle

from edgeforge.bundle import verify
from edgeforge.errors import UnusableInput
from edgeforge.publish import Wire, publish, pull
from edgeforge.runtime.integrity import sha256_of, tree

PLAIN = "--plain-http"


def stored(registry: RunningRegistry, name: str, place: str) -> dict[str, object]:
    """A manifest, as anybody's HTTP client gets it."""
    accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
    url = f"http://{registry.host}/v2/{name}/manifests/{place}"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=30) as response:
        value: dict[str, object] = json.load(response)
        return value


def test_what_comes_back_is_the_same_bundle(registry: RunningRegistry, run: Run, tiny: Path, tmp_path: Path) -> None:
    reference = f"oci://{registry.host}/same/tiny:1.0"
    pushed = document(run("publish", tiny, reference, PLAIN, "--json"))
    assert pushed["size_bytes"] == pushed["sent_bytes"]
    pulled = document(run("pull", reference, tmp_path / "deep" / "got", PLAIN, "--json"))
    assert pulled["digest"] == pushed["digest"]
    assert contents(tmp_path / "deep" / "got") == contents(tiny)
    assert run("verify", tmp_path / "deep" / "got").returncode == 0
    only(tmp_path / "deep", ["got"])
    by_digest = f"oci://{registry.host}/same/tiny@{pushed['digest']}"
    assert document(run("pull", by_digest, tmp_path / "again", PLAIN, "--json"))["digest"] == pushed["digest"]


def test_the_same_bundle_is_the_same_artifact_and_is_sent_once(
    registry: RunningRegistry, run: Run, tiny: Path, tmp_path: Path
) -> None:
    reference = f"oci://{registry.host}/once/tiny"
    first = document(run("publish", tiny, f"{reference}:1", PLAIN, "--json"))
    copy = shutil.copytree(tiny, tmp_path / "copy")
    second = document(run("publish", copy, f"{reference}:2", PLAIN, "--json"))
    assert second["digest"] == first["digest"]
    assert second["sent_bytes"] == 0
    assert second["present_bytes"] == second["size_bytes"]


def test_it_is_an_artifact_as_model_pack_describes_it(registry: RunningRegistry, run: Run, tiny: Path) -> None:
    run("publish", tiny, f"oci://{registry.host}/spec/tiny:1", PLAIN)
    manifest = stored(registry, "spec/tiny", "1")
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    layers = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in manifest["layers"]}
    assert {path: layer["size"] for path, layer in layers.items()} == tree(tiny)
    for path, layer in layers.items():
        assert layer["digest"] == f"sha256:{sha256_of(tiny / path)}"
        assert layer["annotations"]["org.opencontainers.image.title"] == path
    kinds = {path: layers[path]["mediaType"].rpartition("model.")[2] for path in layers}
    assert kinds["model/model.onnx.data"] == kinds["model/model.onnx"] == "weight.v1.raw"
    assert kinds["model/tokenizer.json"] == kinds["manifest.json"] == "weight.config.v1.raw"
    assert kinds["runtime/session.py"] == kinds["__main__.py"] == "code.v1.raw"
    assert kinds["LICENSE"] == kinds["SHA256SUMS"] == kinds["sbom.cdx.json"] == "doc.v1.raw"
    config = json.loads(registry.blob(manifest["config"]["digest"].removeprefix("sha256:")).read_bytes())
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
    assert config["config"]["format"] == "onnx"


def test_a_second_target_sends_only_what_it_does_not_share(
    registry: RunningRegistry, proxy: Proxy, run: Run, large: Path, tmp_path: Path
) -> None:
    """Judged by what passes the wire, not by what the command says."""
    other = with_file(shutil.copytree(large, tmp_path / "other"), "model/own.data", incompressible(50_000, 1))
    repository = f"oci://{proxy.host}/shared/model"
    first = document(run("publish", large, f"{repository}:a", PLAIN, "--json"))
    assert proxy.uploaded_bytes > 12 << 20
    proxy.forget()
    second = document(run("publish", other, f"{repository}:b", PLAIN, "--json"))
    assert second["sent_bytes"] < 100_000 < first["sent_bytes"]
    assert proxy.uploaded_bytes < 120_000


def test_an_update_fetches_only_what_changed(
    registry: RunningRegistry, proxy: Proxy, run: Run, large: Path, tmp_path: Path
) -> None:
    repository = f"oci://{proxy.host}/update/model"
    run("publish", large, f"{repository}:1", PLAIN)
    run("pull", f"{repository}:1", tmp_path / "got", PLAIN)
    update = with_file(shutil.copytree(large, tmp_path / "update"), "model/chat_template.jinja", b"{{ messages }}")
    proxy.forget()
    run("publish", update, f"{repository}:2", PLAIN)
    assert proxy.uploaded_bytes < 60_000
    proxy.forget()
    pulled = document(run("pull", f"{repository}:2", tmp_path / "got", PLAIN, "--json"))
    assert contents(tmp_path / "got") == contents(update)
    assert pulled["reused_bytes"] > 12 << 20
    assert proxy.downloaded_bytes < 60_000
    only(tmp_path, ["cache", "docker", "got", "update"])


def test_an_older_bundle_that_was_changed_is_not_trusted(
    registry: RunningRegistry, run: Run, large: Path, tmp_path: Path
) -> None:
    reference = f"oci://{registry.host}/changed/model:1"
    run("publish", large, reference, PLAIN)
    run("pull", reference, tmp_path / "got", PLAIN)
    file = tmp_path / "got" / "model/extra.data"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    pulled = document(run("pull", reference, tmp_path / "got", PLAIN, "--json"))
    assert contents(tmp_path / "got") == contents(large)
    assert pulled["received_bytes"] > 12 << 20


def test_another_repository_of_the_registry_lends_what_it_has(
    registry: RunningRegistry, proxy: Proxy, run: Run, large: Path
) -> None:
    run("publish", large, f"oci://{proxy.host}/lender/model:1", PLAIN)
    proxy.forget()
    done = document(run("publish", large, f"oci://{proxy.host}/borrower/model:1", PLAIN, "--json"))
    assert done["sent_bytes"] == 0
    assert done["mounted_bytes"] == done["size_bytes"]
    assert any("mount=sha256" in request.path for request in proxy.requests)
    assert proxy.uploaded_bytes < 20_000  # the manifest


def test_a_damaged_bundle_is_not_published(proxy: Proxy, run: Run, tiny: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(tiny, tmp_path / "damaged")
    (damaged / "NOTICE").write_text("changed")
    sentence = refused(run("publish", damaged, f"oci://{proxy.host}/damaged/tiny:1", PLAIN), 6)
    assert "NOTICE" in sentence
    assert proxy.requests == []


def test_a_check_that_refuses_stops_a_push_before_it_and_a_pull_before_its_end(
    registry: RunningRegistry, proxy: Proxy, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "cache"))

    def refuse(bundle: Path) -> None:
        verify(bundle)
        raise UnusableInput("no licence", hint="add one")

    reference, wire = f"oci://{proxy.host}/checked/tiny:1", Wire(plain_http=True)
    with pytest.raises(UnusableInput, match="no licence"):
        publish([tiny], reference, wire=wire, checks=[refuse])
    assert proxy.requests == []
    publish([tiny], reference, wire=wire)
    with pytest.raises(UnusableInput, match="no licence"):
        pull(reference, tmp_path / "got", wire=wire, platform=None, choose=min, checks=[refuse])
    assert not (tmp_path / "got").exists()


def test_what_is_no_bundle_is_not_replaced(registry: RunningRegistry, run: Run, tiny: Path, tmp_path: Path) -> None:
    reference = f"oci://{registry.host}/precious/tiny:1"
    run("publish", tiny, reference, PLAIN)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    assert "not a bundle" in refused(run("pull", reference, tmp_path / "mine", PLAIN), 2)
    (tmp_path / "link").symlink_to(make_bundle(tmp_path / "linked", Shape(layers=1)))
    assert "link" in refused(run("pull", reference, tmp_path / "link", PLAIN), 2)
    only(tmp_path, ["cache", "docker", "link", "linked", "mine"])
    only(tmp_path / "mine", ["thesis.tex"])


def test_a_pull_removes_what_an_interrupted_one_of_another_version_left(
    registry: RunningRegistry, run: Run, tiny: Path, tmp_path: Path
) -> None:
    reference = f"oci://{registry.host}/left/tiny:1"
    run("publish", tiny, reference, PLAIN)
    blobs = tmp_path / ".got.pull" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / ("0" * 64)).write_bytes(b"of another version")
    assert run("pull", reference, tmp_path / "got", PLAIN).returncode == 0
    only(tmp_path, ["cache", "docker", "got"])


@pytest.mark.parametrize(
    "reference", ["models/demo", "oci://host", "oci://host/Upper:1", "oci://ho st/a:1", "oci://host/a:b:c", "hf://a"]
)
def test_a_reference_that_is_none_is_told(reference: str, run: Run, tiny: Path, tmp_path: Path) -> None:
    assert reference in refused(run("publish", tiny, reference), 2)
    assert reference in refused(run("pull", reference, tmp_path / "got"), 2)
    assert not (tmp_path / "got").exists()


def test_a_digest_cannot_be_published_to(run: Run, tiny: Path) -> None:
    reference = f"oci://localhost/a/b@sha256:{'0' * 64}"
    assert "digest" in refused(run("publish", tiny, reference), 2)
