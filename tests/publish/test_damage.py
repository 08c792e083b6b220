"""Every way to change a signed bundle ends with exit code 6: at `verify`, at `publish`, and at `pull` where the changed
bundle lies in a folder, or behind a registry that changes it. Nothing is left at the destination.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Fault, Proxy, Request
from published import LICENCE, contents, only
from tiny_bundle import Shape, make_bundle
from workflows import signing_key

from edgeforge.bundle.signature import KeySigner, sign
from edgeforge.cli.console import run_guarded
from edgeforge.cli.group import edgeforge
from edgeforge.errors import IntegrityError
from edgeforge.publish import Wire, publish, pull

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key of who signed the bundles: pub.pem, with key.pem beside it."""
    folder = tmp_path_factory.mktemp("keys")
    private, public = signing_key(folder)
    (folder / "key.pem").write_text(private)
    return public


def signed_by(public: Path, bundle: Path) -> Path:
    sign(bundle, KeySigner(private_key=public.with_name("key.pem")))
    return bundle


@pytest.fixture(scope="module")
def signed(public: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, do not change it."""
    return signed_by(public, make_bundle(tmp_path_factory.mktemp("signed") / "bundle", notices=LICENCE))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rename(bundle: Path) -> None:
    os.rename(bundle / "NOTICE", bundle / "NOTICE.txt")


def add(bundle: Path) -> None:
    (bundle / "runtime" / "more.py").write_text("print('mine')\n")


def link(bundle: Path) -> None:
    """Out of the tree, to the very same bytes."""
    os.rename(bundle / "NOTICE", bundle.parent / "elsewhere")
    (bundle / "NOTICE").symlink_to(bundle.parent / "elsewhere")


def lead_out(bundle: Path) -> None:
    """manifest.json names a file beside the bundle, and SHA256SUMS agrees."""
    before = (bundle / "manifest.json").read_bytes()
    manifest = json.loads(before)
    manifest["files"]["../elsewhere"] = manifest["files"]["NOTICE"]
    after = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(after)
    sums = (bundle / "SHA256SUMS").read_text()
    (bundle / "SHA256SUMS").write_text(sums.replace(*(hashlib.sha256(each).hexdigest() for each in (before, after))))
    shutil.copyfile(bundle / "NOTICE", bundle.parent / "elsewhere")


DAMAGES: list[Damage] = [rename, add, link, lead_out]


def code(*arguments: object) -> int:
    return run_guarded(edgeforge, [str(each) for each in arguments])


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_changed_bundle_is_refused_everywhere(
    damage: Damage, signed: Path, public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(signed, tmp_path / "place" / "bundle")
    damage(bundle)
    assert code("verify", bundle) == 6
    assert code("verify", bundle, "--key", public) == 6
    assert code("publish", bundle, f"file://{tmp_path / 'published'}") == 6
    assert not (tmp_path / "published").exists()
    pulled = code("pull", f"file://{bundle}", tmp_path / "got", "--key", public)
    if damage is link:  # the bytes are right, and arrive as a file
        assert pulled == 0
        assert contents(tmp_path / "got") == contents(signed)
        assert not any(path.is_symlink() for path in (tmp_path / "got").rglob("*"))
    else:
        assert pulled == 6
        only(tmp_path, ["place"])
    assert "Traceback" not in capsys.readouterr().err


def test_a_signature_of_another_bundle_is_refused_everywhere(signed: Path, public: Path, tmp_path: Path) -> None:
    """By the same key. Without a name to trust, nobody looks at it."""
    other = signed_by(public, make_bundle(tmp_path / "other", Shape(layers=1), notices=LICENCE))
    bundle = shutil.copytree(signed, tmp_path / "bundle")
    shutil.copyfile(other / "model.sig", bundle / "model.sig")
    assert code("verify", bundle) == 0
    assert code("verify", bundle, "--key", public) == 6
    assert code("publish", bundle, f"file://{tmp_path / 'published'}") == 0
    assert code("pull", f"file://{tmp_path / 'published'}", tmp_path / "got", "--key", public) == 6
    only(tmp_path, ["bundle", "other", "published"])


def test_a_flipped_byte_in_any_file_is_refused_everywhere(signed: Path, public: Path, tmp_path: Path) -> None:
    """Of the signature itself, only who asks for one hears."""
    for name in contents(signed):
        bundle = shutil.copytree(signed, tmp_path / "bundle")
        flip(bundle / name)
        assert code("verify", bundle, "--key", public) == 6, name
        assert code("pull", f"file://{bundle}", tmp_path / "got", "--key", public) == 6, name
        if name != "model.sig":
            assert code("publish", bundle, f"file://{tmp_path / 'published'}") == 6, name
        only(tmp_path, ["bundle"])
        shutil.rmtree(bundle)


def test_a_flipped_byte_in_a_blob_is_refused_whichever_it_is(
    proxy: Proxy, signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFORGE_CACHE", str(tmp_path / "cache"))
    reference, wire = f"oci://{proxy.host}/damage/any:1", Wire(plain_http=True)
    publish([signed], reference, wire=wire)
    for name, content in list(contents(signed).items())[::5]:
        digest = hashlib.sha256(content).hexdigest()
        other = content[:-1] + bytes([content[-1] ^ 1])

        def fault(request: Request, digest: str = digest, other: bytes = other) -> Fault | None:
            return Fault(change=lambda data: other) if request.is_blob and digest in request.path else None

        proxy.fault = fault
        with pytest.raises(IntegrityError, match="arrived changed") as refusal:
            pull(reference, tmp_path / "got", wire=wire, platform=None, choose=min)
        assert name in refusal.value.message
        only(tmp_path, ["cache"])
