"""`edgeforge sign`: put a name to a bundle."""

from pathlib import Path

import click

from edgeforge.cli.options import json_option, quiet_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key", type=click.Path(path_type=Path), metavar="PEM", help="A private key on an elliptic curve, P-256 to P-521."
)
@click.option(
    "--certificate",
    "certificates",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PEM",
    help="With --key: its certificate, then those that lead to a root, in one file or several.",
)
@click.option("--keyless", is_flag=True, help="As the identity of this CI job, or after a login in the browser.")
@click.option(
    "--identity-token",
    envvar="SIGSTORE_ID_TOKEN",
    show_envvar=True,
    metavar="TOKEN",
    help="As the identity of this OpenID token.",
)
@json_option
@quiet_option
def sign(
    bundle: Path,
    key: Path | None,
    certificates: tuple[Path, ...],
    keyless: bool,
    identity_token: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Sign BUNDLE, after checking every byte of it.

    Writes BUNDLE/model.sig, which `edgeforge verify` and `model_signing verify` read. A report that is added later
    takes a new signature. The password of an encrypted key is read from EDGEFORGE_KEY_PASSWORD.

    \b
    Examples:
      edgeforge sign artifacts/demo-cpu --key key.pem
      edgeforge sign artifacts/demo-cpu --key key.pem --certificate chain.pem
      edgeforge sign artifacts/demo-cpu --keyless
    """
    import os
    import sys

    from edgeforge.bundle import signature
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.progress import Progress
    from edgeforge.errors import UsageError
    from edgeforge.runtime.integrity import verify

    wants_identity = keyless or (identity_token is not None and key is None)
    if (key is not None) is wants_identity:
        raise UsageError("say who signs", hint="give either --key PEM or --keyless")
    if certificates and key is None:
        raise UsageError("--certificate goes with the key that it is for", hint="add --key PEM")
    signer: signature.Signer = signature.KeylessSigner(token=identity_token, may_log_in=sys.stdin.isatty())
    if key is not None:
        password = os.environ.get("EDGEFORGE_KEY_PASSWORD")
        signer = signature.KeySigner(private_key=key, password=password, certificates=certificates)
    signature.check_signer(signer)
    with Progress(quiet=quiet or as_json) as progress:
        verify(bundle, "full", lambda done, total: progress("verify", done, total))
    path = signature.sign(bundle, signer)
    if as_json:
        emit_json({"bundle": str(bundle), "signature": str(path)})
    else:
        click.echo(f"{path}: signs every file of {bundle}")
