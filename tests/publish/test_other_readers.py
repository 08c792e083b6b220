"""Other people's programs read what was pushed: skopeo, and the pull of the ORAS project's Python client.

There is no package of the `oras` command line for Debian, PyPI or npm. A program over oras-go 1.1, its library, read
the demo once. EdgeForge itself uses ORAS's Python client for nothing but the Docker configuration, so that its pull
is somebody else's code.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from published import Run, contents, document
from registries import ROOT, RunningRegistry
from tiny_bundle import make_engine_bundle

PLAIN = "--plain-http"
FETCHED = ROOT / ".peers" / "skopeo" / "usr"
Skopeo = Callable[..., bytes]


@pytest.fixture(scope="module")
def skopeo(tmp_path_factory: pytest.TempPathFactory) -> Skopeo:
    """The program on the PATH, or the one that ci/registry fetched; it trusts whatever is signed by nobody."""
    fetched = FETCHED / "bin" / "skopeo"
    program = shutil.which("skopeo") or (str(fetched) if fetched.is_file() else None)
    if program is None:
        pytest.skip("no skopeo: ci/registry fetches it")
    libraries = ":".join(map(str, (FETCHED / "lib").glob("*-linux-gnu*")))
    home = tmp_path_factory.mktemp("skopeo")
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}

    def run(*arguments: str) -> bytes:
        command = [program, "--insecure-policy", *arguments]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return run


def bundle_in(folder: Path) -> dict[str, bytes]:
    """What lies in skopeo's `dir:` layout, by the paths that the layers name."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    title = "org.opencontainers.image.title"
    names = {layer["annotations"][title]: layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]}
    return {path: (folder / name).read_bytes() for path, name in names.items()}


def test_skopeo_copies_a_bundle_out_of_the_registry(
    registry: RunningRegistry, run: Run, skopeo: Skopeo, large: Path, tmp_path: Path
) -> None:
    """It checks every digest on its way."""
    place = f"{registry.host}/skopeo/large:1"
    pushed = document(run("publish", large, f"oci://{place}", PLAIN, "--chunk-mib", 1, "--json"))
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{place}")
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == pushed["digest"]
    skopeo("copy", "--src-tls-verify=false", f"docker://{place}", f"dir:{tmp_path / 'got'}")
    assert bundle_in(tmp_path / "got") == contents(large)


def test_what_skopeo_mirrored_is_pulled_from_there(
    registry: RunningRegistry, run: Run, skopeo: Skopeo, tiny: Path, tmp_path: Path
) -> None:
    """Both targets of an index; skopeo may write the index anew, never the bundles' manifests."""
    engine = make_engine_bundle(tmp_path / "engine", engine="vllm")
    source, mirror = (f"{registry.host}/{name}/model:1" for name in ("original", "mirror"))
    document(run("publish", tiny, engine, f"oci://{source}", PLAIN, "--without-licence", "--json"))
    skopeo(
        "copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", f"docker://{source}", f"docker://{mirror}"
    )
    for target, bundle in (("cpu", tiny), ("h100", engine)):
        document(run("pull", f"oci://{mirror}", tmp_path / target, PLAIN, "--platform", target, "--json"))
        assert contents(tmp_path / target) == contents(bundle)


def test_oras_pulls_a_bundle(
    registry: RunningRegistry, run: Run, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("oras.client")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    place = f"{registry.host}/oras/large:1"
    document(run("publish", large, f"oci://{place}", PLAIN, "--chunk-mib", 1, "--json"))
    got = client.OrasClient(hostname=registry.host, insecure=True).pull(target=place, outdir=str(tmp_path / "got"))
    assert len(got) == len(contents(large))
    assert contents(tmp_path / "got") == contents(large)
