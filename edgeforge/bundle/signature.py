"""model.sig: who vouches for a bundle. An OpenSSF Model Signing (OMS) signature by sigstore's model-signing library.

The signature holds the SHA-256 of every file of the bundle but itself, so that a changed, missing, added or renamed
file no longer fits. `model_signing verify` reads it too. The library is the extra `sign`; nothing here is imported by a
build or by the runtime.
"""

import base64
import contextlib
import io
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge.bundle.keyless import IDENTITY_HINT, identity_token
from edgeforge.errors import IntegrityError, MissingDependency, UnusableInput
from edgeforge.runtime.integrity import SIGNATURE_NAME, tree

if TYPE_CHECKING:
    from model_signing import hashing, signing, verifying

LARGEST_SIGNATURE_BYTES = 64 << 20
_BASE64_FIELDS = ("payload", "sig", "rawBytes")
_END = b"-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySigner:
    """An elliptic-curve private key (P-256, P-384, P-521) as PEM; with `certificates`, PEM files, in the name of the
    first certificate in them: the others lead from it towards a root.
    """

    private_key: Path
    password: str | None = None
    certificates: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeylessSigner:
    """An identity that an OpenID provider vouches for: by `token`, else by what the CI job has, else by a login in the
    browser of whoever sits there.
    """

    token: str | None = None
    may_log_in: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """Trust what this PEM file's key signed."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Trust certificates that lead to one of these roots (PEM files)."""

    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Trust what this identity signed, as `provider` (an OpenID issuer's URL) knows it."""

    identity: str
    provider: str


Signer = KeySigner | KeylessSigner
Trust = PublicKey | Certificates | Identity


def is_signed(bundle: Path) -> bool:
    return (bundle / SIGNATURE_NAME).is_file()


def check_signer(signer: Signer) -> None:
    """What `sign` raises for a key, certificate or identity that is not one, before the work."""
    if isinstance(signer, KeylessSigner):
        identity_token(signer.token, may_log_in=signer.may_log_in)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            _signing(signer, Path(scratch))


def check_trust(trust: Trust) -> None:
    """What `verify_signature` raises for a key or certificate that is not one, before the work."""
    if not isinstance(trust, Identity):
        _verifying(trust)


def sign(bundle: Path, signer: Signer) -> Path:
    """Write BUNDLE/model.sig over the bundle as it is, in place of an older one; verify the bundle first.

    Raises UnusableInput (key, certificate, identity), MissingDependency, CorruptBundle (a link).
    """
    tree(bundle)  # no links
    with tempfile.TemporaryDirectory() as scratch:
        config = _signing(signer, Path(scratch))
        partial = bundle.parent / f".{bundle.name}.{SIGNATURE_NAME}-{secrets.token_hex(4)}"
        try:
            with _quiet():
                config.set_hashing_config(_hashing()).sign(bundle, partial)
            os.replace(partial, bundle / SIGNATURE_NAME)
        except OSError:
            raise
        except Exception as error:  # the library and those below it raise classes of their own
            raise UnusableInput(f"{bundle} was not signed: {_said(error)}", hint=_HINTS[type(signer)]) from error
        finally:
            partial.unlink(missing_ok=True)
    return bundle / SIGNATURE_NAME


def verify_signature(bundle: Path, trust: Trust) -> None:
    """IntegrityError (exit 6) unless whoever `trust` names signed every file of the bundle as it is now.

    Every file is hashed for that. Raises UnusableInput for a key or certificate that cannot be read, and
    MissingDependency without the extra `sign`.
    """
    config = _verifying(trust)
    path = bundle / SIGNATURE_NAME
    if not is_signed(bundle):
        raise IntegrityError(f"{bundle} is not signed: it has no {SIGNATURE_NAME}", hint="ask who published it")
    tree(bundle)
    try:
        _check_form(path)
        with _quiet() as said:
            config.set_hashing_config(_hashing()).verify(bundle, path)
        if "WARNING" in said.getvalue():
            raise ValueError("it does not name its key")
    except Exception as error:  # as above; whatever it is, the signature was not proved
        raise IntegrityError(
            f"the signature of {bundle} does not hold: {_said(error)}",
            hint="a file or the signature was changed, or somebody else signed it: do not use the bundle, ask who "
            "published it",
        ) from error


def _hashing() -> "hashing.Config":
    """Every file but the signature, those that git uses included."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(  # type: ignore[no-untyped-call]
        paths=[SIGNATURE_NAME], ignore_git_paths=False
    )


def _signing(signer: Signer, scratch: Path) -> "signing.Config":
    with _library():
        from model_signing import signing
    config = signing.Config()  # type: ignore[no-untyped-call]
    if isinstance(signer, KeylessSigner):
        token = identity_token(signer.token, may_log_in=signer.may_log_in)
        try:
            return config.use_sigstore_signer(identity_token=token)
        except Exception as error:  # sigstore fetches its roots of trust and the addresses of its services here
            raise UnusableInput(
                f"sigstore could not be reached: {_said(error)}", hint=f"check the network; {_HINTS[KeylessSigner]}"
            ) from error
    with _readable(signer.private_key, "a private key on an elliptic curve"):
        if signer.certificates:
            leaf, chain = _split(signer.certificates, scratch)
            return config.use_certificate_signer(
                private_key=signer.private_key, signing_certificate=leaf, certificate_chain=chain
            )
        # The library's hint says str; what it calls wants bytes.
        password = None if signer.password is None else signer.password.encode()
        return config.use_elliptic_key_signer(private_key=signer.private_key, password=password)  # type: ignore[arg-type]


def _verifying(trust: Trust) -> "verifying.Config":
    with _library():
        from model_signing import verifying
    config = verifying.Config()  # type: ignore[no-untyped-call]
    if isinstance(trust, PublicKey):
        with _readable(trust.path, "a public key on an elliptic curve"):
            return config.use_elliptic_key_verifier(public_key=trust.path)
    if isinstance(trust, Certificates):
        with _readable(trust.paths[0], "a certificate"):
            return config.use_certificate_verifier(certificate_chain=trust.paths)
    try:
        return config.use_sigstore_verifier(identity=trust.identity, oidc_issuer=trust.provider)
    except Exception as error:  # sigstore fetches its roots of trust here
        raise UnusableInput(
            f"sigstore's roots of trust could not be fetched: {_said(error)}",
            hint="check the network; offline, verify by --key or --certificate",
        ) from error


def _check_form(path: Path) -> None:
    """ValueError where base64 is not written as encoders write it: its last digit has bits that no signature covers."""
    if path.stat().st_size > LARGEST_SIGNATURE_BYTES:
        raise ValueError("it is too large to be one")
    waiting: list[object] = [json.loads(path.read_text(encoding="utf-8"))]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            texts = [text for key, text in value.items() if key in _BASE64_FIELDS and isinstance(text, str)]
            if any(base64.b64encode(base64.b64decode(text, validate=True)).decode() != text for text in texts):
                raise ValueError("its base64 was changed")


def _split(files: tuple[Path, ...], scratch: Path) -> tuple[Path, list[Path]]:
    """The first certificate of PEM files, and a file with the rest."""
    content = b"\n".join(file.read_bytes() for file in files)
    blocks = [block + _END + b"\n" for block in content.split(_END) if b"-----BEGIN CERTIFICATE-----" in block]
    if not blocks:
        raise ValueError(f"{files[0]} holds no certificate")
    leaf, chain = scratch / "leaf.pem", scratch / "chain.pem"
    leaf.write_bytes(blocks[0])
    chain.write_bytes(b"".join(blocks[1:]))
    return leaf, [chain] if blocks[1:] else []


@contextmanager
def _library() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingDependency(
            f"signatures need the package model-signing ({error})", hint="python -m pip install 'edgeforge[sign]'"
        ) from None


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnusableInput(f"{error.filename or path} cannot be read: {error.strerror}", hint=f"name {what}") from None
    except (ValueError, TypeError, AttributeError) as error:  # cryptography's, for other files and kinds of keys
        raise UnusableInput(f"{path} is not {what}, as PEM: {_said(error)}", hint=_MAKE_KEYS) from None


@contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """The library prints; stdout is for results."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        yield said


def _said(error: BaseException) -> str:
    """The library's words on one line, or its class where it has none."""
    changed = re.findall(r"Hash mismatch for '([^']+)'", str(error))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return f"{', '.join(changed[:3])}{more} changed since"
    words = " ".join(str(error).replace("Signature mismatch: ", "").strip("[]").split())[:300]
    return words.rstrip(".") or type(error).__name__


_MAKE_KEYS = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out pub.pem"
_HINTS: dict[type[Signer], str] = {
    KeySigner: _MAKE_KEYS,
    KeylessSigner: IDENTITY_HINT,
}
