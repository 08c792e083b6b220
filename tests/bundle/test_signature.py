"""A signature holds for exactly the files that were signed and for exactly who signed them; others' tools agree."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import Shape, make_bundle

from edgeforge.bundle import seal, verify
from edgeforge.bundle.signature import (
    Certificates,
    KeySigner,
    PublicKey,
    check_trust,
    is_signed,
    sign,
    verify_signature,
)
from edgeforge.errors import IntegrityError, MissingDependency, UnusableInput
from edgeforge.runtime.errors import CorruptBundle
from edgeforge.runtime.integrity import tree

PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Keys:
    private: Path
    public: Path

    @property
    def signer(self) -> KeySigner:
        return KeySigner(private_key=self.private)

    @property
    def trust(self) -> PublicKey:
        return PublicKey(path=self.public)


def write_keys(folder: Path, name: str, curve: ec.EllipticCurve | None = None, password: bytes | None = None) -> Keys:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, locked))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return Keys(private=private, public=public)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return write_keys(tmp_path_factory.mktemp("keys"), "key")


@pytest.fixture(scope="module")
def signed(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed and signed bundle with a report; tests that change it put it back."""
    bundle = make_bundle(tmp_path_factory.mktemp("signed") / "bundle")
    (bundle / "reports").mkdir()
    (bundle / "reports/bench.json").write_text("{}\n")
    seal(bundle)
    sign(bundle, keys.signer)
    return bundle


@pytest.fixture
def scratch(signed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(signed, tmp_path / "another name")


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def refused(bundle: Path, trust: PublicKey | Certificates) -> str:
    with pytest.raises(IntegrityError) as caught:
        verify_signature(bundle, trust)
    assert caught.value.exit_code == 6
    return caught.value.message


# --- it holds


def test_a_signed_bundle_verifies_wherever_it_lies(scratch: Path, keys: Keys) -> None:
    assert is_signed(scratch)
    verify_signature(scratch, keys.trust)
    verify(scratch)
    assert "model.sig" not in (scratch / "SHA256SUMS").read_text()


def test_model_signing_itself_accepts_it_and_refuses_a_change(scratch: Path, keys: Keys) -> None:
    command = ("verify", "key", scratch, "--signature", scratch / "model.sig", "--public_key", keys.public)
    done = model_signing(*command)
    assert done.returncode == 0, done.stderr
    (scratch / "NOTICE").write_text("mine")
    assert model_signing(*command).returncode != 0


def test_what_model_signing_signed_is_accepted(tmp_path: Path, keys: Keys) -> None:
    bundle = make_bundle(tmp_path / "b")
    signature = bundle / "model.sig"
    done = model_signing("sign", "key", bundle, "--signature", signature, "--private_key", keys.private)
    assert done.returncode == 0, done.stderr
    verify_signature(bundle, keys.trust)
    verify(bundle)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_other_curves_and_encrypted_keys_sign_too(curve: ec.EllipticCurve, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    own = write_keys(tmp_path, "own", curve, b"secret")
    sign(bundle, KeySigner(private_key=own.private, password="secret"))
    verify_signature(bundle, own.trust)
    for password in (None, "wrong"):
        with pytest.raises(UnusableInput):
            sign(bundle, KeySigner(private_key=own.private, password=password))


def test_signing_again_replaces_the_signature(scratch: Path, keys: Keys, tmp_path: Path) -> None:
    (scratch / "reports/bench.json").write_text("[]\n")
    seal(scratch)
    assert "reports/bench.json" in refused(scratch, keys.trust)
    sign(scratch, keys.signer)
    verify_signature(scratch, keys.trust)
    assert [path.name for path in tmp_path.iterdir()] == [scratch.name]


# --- it does not: every file, every way


def all_files() -> st.SearchStrategy[float]:
    return st.floats(0, 1, exclude_max=True)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=all_files(), where=all_files(), flip=st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_refused(signed: Path, keys: Keys, which: float, where: float, flip: int) -> None:
    names = list(tree(signed))
    check_flip(signed, keys, names[int(which * len(names))], where, flip)


def test_a_flipped_byte_in_every_file_is_refused(signed: Path, keys: Keys) -> None:
    for name in tree(signed):
        check_flip(signed, keys, name, 0.5, 1)


def test_a_flipped_bit_anywhere_in_the_signature_is_refused(signed: Path, keys: Keys) -> None:
    """Its ends at least: the middle is one long payload, which is signed."""
    size = (signed / "model.sig").stat().st_size
    for position in (*range(0, size, 397), *range(size - 120, size)):
        check_flip(signed, keys, "model.sig", position / size + 0.1 / size, 2)


def check_flip(bundle: Path, keys: Keys, name: str, where: float, flip: int) -> None:
    """The signature refuses it, and so do the hashes, for all but the signature itself."""
    path = bundle / name
    original = path.read_bytes()
    damaged = bytearray(original)
    damaged[int(where * len(original))] ^= flip
    path.write_bytes(damaged)
    try:
        refused(bundle, keys.trust)
        if name != "model.sig":
            with pytest.raises(CorruptBundle):
                verify(bundle)
    finally:
        path.write_bytes(original)


def test_a_renamed_added_or_missing_file_is_refused(scratch: Path, keys: Keys) -> None:
    os.rename(scratch / "NOTICE", scratch / "NOTICE2")
    assert "NOTICE2" in refused(scratch, keys.trust)
    with pytest.raises(CorruptBundle, match="NOTICE"):
        verify(scratch)
    os.rename(scratch / "NOTICE2", scratch / "NOTICE")
    for name in ("extra", ".gitignore", ".git/config", "model/model.sig"):
        (scratch / name).parent.mkdir(exist_ok=True)
        (scratch / name).write_text("x")
        refused(scratch, keys.trust)
        with pytest.raises(CorruptBundle, match=name):
            verify(scratch)
        (scratch / name).unlink()
    shutil.rmtree(scratch / ".git")
    verify_signature(scratch, keys.trust)
    (scratch / "LICENSE").unlink()
    refused(scratch, keys.trust)


def test_a_link_out_of_the_tree_is_refused(scratch: Path, keys: Keys, tmp_path: Path) -> None:
    os.rename(scratch / "NOTICE", tmp_path / "NOTICE")
    (scratch / "NOTICE").symlink_to(tmp_path / "NOTICE")
    for check in (lambda: verify_signature(scratch, keys.trust), lambda: verify(scratch)):
        with pytest.raises(CorruptBundle, match="NOTICE is not a plain file") as caught:
            check()
        assert caught.value.exit_code == 6
    with pytest.raises(CorruptBundle):
        sign(scratch, keys.signer)


def test_a_linked_signature_is_refused(scratch: Path, keys: Keys, tmp_path: Path) -> None:
    os.rename(scratch / "model.sig", tmp_path / "model.sig")
    (scratch / "model.sig").symlink_to(tmp_path / "model.sig")
    with pytest.raises(CorruptBundle, match=r"model\.sig is not a plain file"):
        verify_signature(scratch, keys.trust)


@pytest.mark.parametrize("path", ["../outside", "model/../../outside", "/etc/passwd", "C:\\x", "a//b"])
def test_a_manifest_that_leads_out_of_the_bundle_is_refused(path: str, scratch: Path) -> None:
    """Even with sums that agree with it."""
    manifest = json.loads((scratch / "manifest.json").read_text())
    manifest["files"][path] = manifest["files"]["NOTICE"]
    text = json.dumps(manifest)
    (scratch / "manifest.json").write_text(text)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(text.encode())
    lines = (scratch / "SHA256SUMS").read_text().splitlines()
    lines = [line for line in lines if not line.endswith("  manifest.json")]
    (scratch / "SHA256SUMS").write_text("\n".join([*lines, f"{digest.finalize().hex()}  manifest.json"]) + "\n")
    with pytest.raises(CorruptBundle, match="not a path inside the bundle") as caught:
        verify(scratch)
    assert caught.value.exit_code == 6


def test_a_signature_of_another_bundle_is_refused(scratch: Path, keys: Keys, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", Shape(layers=1))
    sign(other, keys.signer)
    shutil.copyfile(other / "model.sig", scratch / "model.sig")
    assert "does not hold" in refused(scratch, keys.trust)


def test_a_signature_by_another_key_is_refused(scratch: Path, keys: Keys, tmp_path: Path) -> None:
    stranger = write_keys(tmp_path, "stranger")
    refused(scratch, stranger.trust)
    sign(scratch, stranger.signer)
    refused(scratch, keys.trust)
    # A stranger's signature that claims to be by the trusted key.
    text = (scratch / "model.sig").read_text()
    signature = json.loads(text)
    hint = signature["verificationMaterial"]["publicKey"]
    sign(scratch, keys.signer)
    ours = json.loads((scratch / "model.sig").read_text())
    hint["hint"] = ours["verificationMaterial"]["publicKey"]["hint"]
    (scratch / "model.sig").write_text(json.dumps(signature, separators=(",", ":")))
    refused(scratch, keys.trust)


@pytest.mark.parametrize("text", ["", "{}", "null", "not json", "[[[[", '{"verificationMaterial": {}}'])
def test_what_is_no_signature_is_refused(text: str, scratch: Path, keys: Keys) -> None:
    (scratch / "model.sig").write_text(text)
    refused(scratch, keys.trust)


def test_a_missing_signature_is_said(scratch: Path, keys: Keys) -> None:
    (scratch / "model.sig").unlink()
    assert "is not signed" in refused(scratch, keys.trust)


# --- keys that are none


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_unusable(content: bytes, scratch: Path, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    for check in (lambda: sign(scratch, KeySigner(private_key=path)), lambda: check_trust(PublicKey(path=path))):
        with pytest.raises(UnusableInput, match=r"key\.pem") as caught:
            check()
        assert "openssl" in (caught.value.hint or "")


def test_rsa_and_missing_keys_are_unusable(scratch: Path, tmp_path: Path) -> None:
    path = tmp_path / "rsa.pem"
    key = rsa.generate_private_key(65537, 2048)
    path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    with pytest.raises(UnusableInput, match=r"rsa\.pem is not a private key on an elliptic curve"):
        sign(scratch, KeySigner(private_key=path))
    with pytest.raises(UnusableInput, match=r"gone\.pem cannot be read"):
        sign(scratch, KeySigner(private_key=tmp_path / "gone.pem"))
    assert is_signed(scratch), "the old signature is still there"


def test_without_the_library_the_pip_command_is_given(
    scratch: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model_signing", "model_signing.signing", "model_signing.verifying"):
        monkeypatch.setitem(sys.modules, name, None)
    for check in (lambda: sign(scratch, keys.signer), lambda: verify_signature(scratch, keys.trust)):
        with pytest.raises(MissingDependency) as caught:
            check()
        assert "edgeforge[sign]" in (caught.value.hint or "")


# --- certificates


@dataclass(frozen=True)
class Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def write(self, folder: Path, name: str) -> Path:
        path = folder / f"{name}.pem"
        path.write_bytes(self.certificate.public_bytes(PEM))
        return path


def certify(name: str, issuer: Authority | None, *, ca: bool, signing: bool = True) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=signing,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key if issuer is None else issuer.key, hashes.SHA256())
    )
    return Authority(key=key, certificate=certificate)


def test_a_certificate_that_leads_to_the_root_is_trusted_and_no_other(tmp_path: Path) -> None:
    root = certify("root", None, ca=True)
    middle = certify("middle", root, ca=True)
    leaf = certify("leaf", middle, ca=False)
    key = tmp_path / "key.pem"
    unlocked = serialization.NoEncryption()
    key.write_bytes(leaf.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, unlocked))
    chain = tmp_path / "chain.pem"
    chain.write_bytes(b"".join(each.certificate.public_bytes(PEM) for each in (leaf, middle)))
    bundle = make_bundle(tmp_path / "b")
    trust = Certificates(paths=(root.write(tmp_path, "root"),))
    two_files = (leaf.write(tmp_path, "leaf"), middle.write(tmp_path, "middle"))
    for certificates in ((chain,), two_files):
        sign(bundle, KeySigner(private_key=key, certificates=certificates))
        verify_signature(bundle, trust)
        refused(bundle, Certificates(paths=(certify("root", None, ca=True).write(tmp_path, "other"),)))
    done = model_signing(
        "verify",
        "certificate",
        bundle,
        "--signature",
        bundle / "model.sig",
        "--certificate_chain",
        tmp_path / "root.pem",
    )
    assert done.returncode == 0, done.stderr
    (bundle / "NOTICE").write_text("mine")
    refused(bundle, trust)
    with pytest.raises(UnusableInput, match="does not match"):
        sign(bundle, KeySigner(private_key=key, certificates=(tmp_path / "middle.pem",)))
