"""Several targets under one reference: one entry each, shared files once, and the right one for a machine."""

import json
import shutil
from pathlib import Path

import pytest
import requests
from faults import Proxy
from published import Run, contents, document, incompressible, refused, with_file
from registries import RunningRegistry
from tiny_bundle import make_engine_bundle

PLAIN = "--plain-http"
ANYWAY = "--without-licence"  # the engine's bundle has none
INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(scope="module")
def second(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For target `kiosk`: the large bundle with another file beside what both share."""
    copy = shutil.copytree(large, tmp_path_factory.mktemp("second") / "kiosk")
    return with_file(copy, "model/kiosk.data", incompressible(30_000, 1), target="kiosk")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For target `h100`, which no machine without vLLM runs."""
    return make_engine_bundle(tmp_path_factory.mktemp("engine") / "h100", engine="vllm")


def index(host: str, name: str) -> dict[str, object]:
    response = requests.get(f"http://{host}/v2/{name}/manifests/1", headers={"Accept": INDEX}, timeout=30)
    value: dict[str, object] = response.json()
    return value


def test_several_bundles_are_one_index_that_stores_shared_files_once(
    proxy: Proxy, run: Run, large: Path, second: Path, engine: Path, tmp_path: Path
) -> None:
    reference = f"oci://{proxy.host}/index/model:1"
    done = document(run("publish", large, second, engine, reference, PLAIN, ANYWAY, "--json"))
    assert done["targets"] == ["cpu", "kiosk", "h100"]
    assert proxy.uploaded_bytes < (12 << 20) + 1_500_000
    found = index(proxy.host, "index/model")
    assert found["mediaType"] == INDEX
    entries = {entry["annotations"]["edgeforge.target"]: entry for entry in found["manifests"]}
    assert list(entries) == ["cpu", "h100", "kiosk"]
    assert all(entry["platform"] == {"architecture": "amd64", "os": "linux"} for entry in entries.values())
    for target, bundle in (("cpu", large), ("kiosk", second), ("h100", engine)):
        pulled = document(run("pull", reference, tmp_path / target, PLAIN, "--platform", target, "--json"))
        assert pulled["target"] == target
        assert pulled["digest"] == entries[target]["digest"]
        assert contents(tmp_path / target) == contents(bundle)
    sentence = refused(run("pull", reference, tmp_path / "got", PLAIN, "--platform", "b200"), 3)
    assert "has nothing for b200" in sentence


def test_a_machine_gets_its_own_and_is_told_why_not_the_others(
    registry: RunningRegistry, run: Run, tiny: Path, engine: Path, tmp_path: Path
) -> None:
    reference = f"oci://{registry.host}/auto/model:1"
    document(run("publish", engine, tiny, reference, PLAIN, ANYWAY, "--json"))
    pulled = document(run("pull", reference, tmp_path / "got", PLAIN, "--json"))
    assert pulled["target"] == "cpu"
    assert "vLLM" in pulled["refused"]["h100"]
    assert contents(tmp_path / "got") == contents(tiny)
    done = run("pull", reference, tmp_path / "again", PLAIN)
    assert any(line.startswith("not h100: ") for line in done.stderr.splitlines())
    document(run("publish", engine, f"oci://{registry.host}/auto/only:1", PLAIN, ANYWAY, "--add", "--json"))
    assert "h100: " in refused(run("pull", f"oci://{registry.host}/auto/only:1", tmp_path / "none", PLAIN), 7)
    assert not (tmp_path / "none").exists()


def test_add_keeps_the_other_targets_and_replaces_its_own(
    registry: RunningRegistry, run: Run, tiny: Path, engine: Path, tmp_path: Path
) -> None:
    reference = f"oci://{registry.host}/added/model:1"
    document(run("publish", tiny, reference, PLAIN, "--add", "--json"))
    done = document(run("publish", engine, reference, PLAIN, ANYWAY, "--add", "--json"))
    assert sorted(done["targets"]) == ["cpu", "h100"]
    update = with_file(shutil.copytree(tiny, tmp_path / "update"), "model/more.data", b"more")
    document(run("publish", update, reference, PLAIN, "--add", "--json"))
    assert len(index(registry.host, "added/model")["manifests"]) == 2
    document(run("pull", reference, tmp_path / "got", PLAIN, "--json"))
    assert contents(tmp_path / "got") == contents(update)


def test_what_cannot_stand_together_is_told(
    registry: RunningRegistry, run: Run, tiny: Path, large: Path, engine: Path, tmp_path: Path
) -> None:
    reference = f"oci://{registry.host}/apart/model:1"
    assert "both for target cpu" in refused(run("publish", tiny, large, reference, PLAIN), 2)
    document(run("publish", tiny, reference, PLAIN, "--json"))
    assert "is a single bundle" in refused(run("publish", engine, reference, PLAIN, ANYWAY, "--add"), 3)
    assert "nothing for h100" in refused(run("pull", reference, tmp_path / "got", PLAIN, "--platform", "h100"), 3)


def test_an_index_of_something_else_is_told(registry: RunningRegistry, run: Run, tiny: Path, tmp_path: Path) -> None:
    document(run("publish", tiny, f"oci://{registry.host}/foreign/model:1", PLAIN, "--json"))
    content = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})
    url = f"http://{registry.host}/v2/foreign/model/manifests/images"
    requests.put(url, data=content, headers={"Content-Type": INDEX}, timeout=30).raise_for_status()
    sentence = refused(run("pull", f"oci://{registry.host}/foreign/model:images", tmp_path / "got", PLAIN), 3)
    assert "none of bundles" in sentence
