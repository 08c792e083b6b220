"""Whom to trust: the options of every command that proves a signature."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeforge.bundle.signature import Trust


def trust_options(command: Callable[..., None]) -> Callable[..., None]:
    """--key, --certificate, --identity and --identity-provider, handed to the command as one argument: `trust`, None
    where the user named nobody. UsageError where they contradict each other.
    """

    @click.option("--key", type=click.Path(path_type=Path), metavar="PEM", help="Trust what this public key signed.")
    @click.option(
        "--certificate",
        "certificates",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="PEM",
        help="Trust certificates that lead to this root; may be given often.",
    )
    @click.option(
        "--identity", metavar="NAME", help="Trust what this identity signed: a mail address, or the URL of a workflow."
    )
    @click.option(
        "--identity-provider", metavar="URL", help="Who vouches for it: https://token.actions.githubusercontent.com ..."
    )
    @wraps(command)
    def gathered(
        *,
        key: Path | None,
        certificates: tuple[Path, ...],
        identity: str | None,
        identity_provider: str | None,
        **others: object,
    ) -> None:
        command(trust=_trust(key, certificates, identity, identity_provider), **others)

    return gathered


def _trust(
    key: Path | None, certificates: tuple[Path, ...], identity: str | None, provider: str | None
) -> "Trust | None":
    from edgeforge.errors import UsageError

    named = [key is not None, bool(certificates), identity is not None or provider is not None]
    if not any(named):
        return None
    if sum(named) > 1:
        raise UsageError("--key, --certificate and --identity are three ways to say whom to trust", hint="give one")
    from edgeforge.bundle.signature import Certificates, Identity, PublicKey

    if key is not None:
        return PublicKey(path=key)
    if certificates:
        return Certificates(paths=certificates)
    if identity is None or provider is None:
        raise UsageError(
            "--identity and --identity-provider go together: a name is worth what its provider is",
            hint="give both; GitHub Actions is --identity-provider https://token.actions.githubusercontent.com",
        )
    return Identity(identity=identity, provider=provider)
