"""What is published has its licence, and what is pulled with a name to trust was signed by that name."""

import shutil
import subprocess
from pathlib import Path

import pytest
from faults import Proxy
from published import Run, contents, document, refused
from registries import RunningRegistry
from tiny_bundle import make_bundle

PLAIN = "--plain-http"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """key.pem with pub.pem, and other.pem of somebody else."""
    pytest.importorskip("model_signing")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl, which makes the keys")
    folder = tmp_path_factory.mktemp("keys")
    for private, public in (("key.pem", "pub.pem"), ("otherkey.pem", "other.pem")):
        make = [openssl, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
        subprocess.run(make, cwd=folder, check=True, capture_output=True)
        show = [openssl, "ec", "-in", private, "-pubout", "-out", public]
        subprocess.run(show, cwd=folder, check=True, capture_output=True)
    return folder


def test_a_model_without_a_licence_is_not_published_unasked(proxy: Proxy, run: Run, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    reference = f"oci://{proxy.host}/unlicensed/tiny:1"
    assert "no licence" in refused(run("publish", bundle, reference, PLAIN), 3)
    assert proxy.requests == []
    document(run("publish", bundle, reference, PLAIN, "--without-licence", "--json"))


def test_a_signature_travels_and_is_proved_before_the_bundle_is_there(
    registry: RunningRegistry, run: Run, keys: Path, tiny: Path, tmp_path: Path
) -> None:
    signed = shutil.copytree(tiny, tmp_path / "signed")
    assert run("sign", signed, "--key", keys / "key.pem").returncode == 0
    reference = f"oci://{registry.host}/signed/tiny:1"
    document(run("publish", signed, reference, PLAIN, "--json"))
    sentence = refused(run("pull", reference, tmp_path / "got", PLAIN, "--key", keys / "other.pem"), 6)
    assert "signature" in sentence
    assert not (tmp_path / "got").exists()
    pulled = document(run("pull", reference, tmp_path / "got", PLAIN, "--key", keys / "pub.pem", "--json"))
    assert pulled["signature"] == "proved"
    assert contents(tmp_path / "got") == contents(signed)


def test_what_nobody_signed_is_refused_where_a_name_is_asked_for(
    registry: RunningRegistry, run: Run, keys: Path, tiny: Path, tmp_path: Path
) -> None:
    reference = f"oci://{registry.host}/unsigned/tiny:1"
    document(run("publish", tiny, reference, PLAIN, "--json"))
    assert "not signed" in refused(run("pull", reference, tmp_path / "got", PLAIN, "--key", keys / "pub.pem"), 6)
    assert not (tmp_path / "got").exists()
    assert not list(tmp_path.glob(".*")), "something hidden was left"
