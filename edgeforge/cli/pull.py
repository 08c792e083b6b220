"""`edgeforge pull`: a published bundle, proven before it is in place."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeforge.cli import options, transfer_options
from edgeforge.cli.trust_options import trust_options

if TYPE_CHECKING:
    from edgeforge.bundle.signature import Trust
    from edgeforge.runtime.manifest import Manifest


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--platform",
    default="auto",
    metavar="NAME",
    help="Which target to take where REF has several.  [default: auto, the best that runs on this machine]",
)
@trust_options
@transfer_options.plain_http_option
@transfer_options.attempts_option
@options.json_option
@options.quiet_option
def pull(
    reference: str,
    folder: Path,
    platform: str,
    trust: "Trust | None",
    plain_http: bool,
    attempts: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fetch the bundle under REF into DIR: oci://host/name:tag, oci://host/name@sha256:..., hf://org/name[@revision],
    or a URL of fsspec.

    Every byte is verified while it arrives, and DIR is there when all of them are right. A bundle already in DIR is
    replaced, and what it shares with the new one is not fetched. An interrupted pull goes on where it stopped. With
    --key, --certificate or --identity, the signature is proved before DIR is there.

    \b
    Examples:
      edgeforge pull oci://registry.example.com/models/demo:1.0 models/demo
      edgeforge pull oci://registry.example.com/models/demo:1.0 models/demo --platform rtx4090
      edgeforge pull oci://registry.example.com/models/demo:1.0 models/demo --key pub.pem
    """
    from edgeforge import publish as publishing
    from edgeforge.cli.console import emit_json, note
    from edgeforge.cli.progress import Progress
    from edgeforge.cli.text import bytes_text
    from edgeforge.runtime.variants import choose_variant, this_machine

    checks: list[Callable[[Path], None]] = []
    if trust is not None:
        from edgeforge.bundle.signature import check_trust, verify_signature

        check_trust(trust)
        checks.append(partial(verify_signature, trust=trust))
    refused: dict[str, str] = {}

    def choose(manifests: "Mapping[str, Manifest]") -> str:
        variants = choose_variant(manifests, this_machine())
        refused.update(variants.refused)
        return variants.best

    wire = publishing.Wire(plain_http=plain_http, attempts=attempts)
    with Progress(quiet=quiet or as_json) as progress:
        done = publishing.pull(
            reference,
            folder,
            wire=wire,
            platform=None if platform == "auto" else platform,
            choose=choose,
            checks=checks,
            progress=progress,
        )
    if as_json:
        emit_json(
            {
                "bundle": str(folder),
                "reference": reference,
                "digest": done.digest,
                "target": done.target,
                "refused": refused,
                "signature": "proved" if trust is not None else "not checked",
                "files": done.files,
                "size_bytes": done.size_bytes,
                "received_bytes": done.received_bytes,
                "resumed_bytes": done.resumed_bytes,
                "reused_bytes": done.reused_bytes,
            }
        )
        return
    if not quiet:
        for target, reason in refused.items():
            note(f"not {target}: {reason}")
    proved = "" if trust is None else ", and the signature holds"
    spared = done.resumed_bytes + done.reused_bytes
    click.echo(
        f"{folder}: {done.files} files for {done.target}, {bytes_text(done.size_bytes)}, every hash matches{proved};"
        f" received {bytes_text(done.received_bytes)}" + (f", {bytes_text(spared)} was here" if spared else "")
    )
