"""`edgeforge publish`: bundles to where devices get them."""

from pathlib import Path

import click

from edgeforge.cli import options, transfer_options


@click.command()
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("reference", metavar="REF")
@click.option("--add", is_flag=True, help="Keep what other targets have under REF, and add or replace these.")
@click.option(
    "--without-licence",
    is_flag=True,
    help="Publish a model whose files came without a licence; you answer for that. Never a Llama.",
)
@transfer_options.plain_http_option
@transfer_options.attempts_option
@transfer_options.chunk_option
@options.json_option
@options.quiet_option
def publish(
    bundles: tuple[Path, ...],
    reference: str,
    add: bool,
    without_licence: bool,
    plain_http: bool,
    attempts: int,
    chunk_mib: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Verify each BUNDLE and publish it under REF: oci://host/name:tag, hf://org/name[@branch], or a URL of fsspec
    (file:///srv/models/x, s3://bucket/x).

    The model's licence must be in the bundle, and for a Llama what Meta's licence asks for; else nothing is sent.

    In a registry, a file that is there already, under whatever name, is not sent again, and an interrupted push goes
    on where it stopped. Several bundles, of one target each, become one OCI index. Credentials are those of `docker
    login`, of `hf auth login`, or the URL's own.

    \b
    Examples:
      edgeforge publish artifacts/demo-cpu oci://registry.example.com/models/demo:1.0
      edgeforge publish artifacts/demo-cpu artifacts/demo-rtx4090 oci://registry.example.com/models/demo:1.0
      edgeforge publish artifacts/demo-l4 oci://registry.example.com/models/demo:1.0 --add
      edgeforge publish artifacts/demo-cpu hf://example/demo-cpu
    """
    from edgeforge import publish as publishing
    from edgeforge.bundle.publishable import check_publishable
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.progress import Progress
    from edgeforge.cli.text import bytes_text

    def licensed(bundle: Path) -> None:
        check_publishable(bundle, without_licence=without_licence)

    wire = publishing.Wire(plain_http=plain_http, attempts=attempts, chunk_bytes=chunk_mib << 20)
    with Progress(quiet=quiet or as_json) as progress:
        done = publishing.publish(bundles, reference, wire=wire, add=add, checks=[licensed], progress=progress)
    if as_json:
        emit_json(
            {
                "reference": reference,
                "digest": done.digest,
                "targets": list(done.targets),
                "files": done.files,
                "size_bytes": done.size_bytes,
                "sent_bytes": done.sent_bytes,
                "present_bytes": done.present_bytes,
                "mounted_bytes": done.mounted_bytes,
            }
        )
        return
    told = f"{done.files} files for {', '.join(done.targets)}, {bytes_text(done.size_bytes)}"
    if done.sent_bytes is not None:
        spared = (done.present_bytes or 0) + (done.mounted_bytes or 0)
        told += f": sent {bytes_text(done.sent_bytes)}" + (f", {bytes_text(spared)} was there" if spared else "")
    click.echo(f"{reference}: {done.digest}\n{told}")
