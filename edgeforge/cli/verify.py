"""`edgeforge verify`: every byte of a bundle against its manifest."""

from pathlib import Path
from typing import Literal

import click

from edgeforge.cli.options import json_option, quiet_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Sizes of all files, hashes of the small ones only.")
@json_option
@quiet_option
def verify(bundle: Path, quick: bool, as_json: bool, quiet: bool) -> None:
    """Check every byte of BUNDLE against its manifest and SHA256SUMS.

    A changed, missing or extra file is named and ends with exit code 6.

    \b
    Examples:
      edgeforge verify artifacts/demo-cpu
      edgeforge verify artifacts/demo-cpu --quick
    """
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.progress import Progress
    from edgeforge.cli.text import bytes_text
    from edgeforge.runtime.integrity import verify as verify_bundle

    level: Literal["quick", "full"] = "quick" if quick else "full"
    with Progress(quiet=quiet or as_json) as progress:
        manifest = verify_bundle(bundle, level, lambda done, total: progress("verify", done, total))
    files = manifest.files
    size = sum(file.size for file in files.values())
    if as_json:
        emit_json({"bundle": str(bundle), "level": level, "files": len(files), "size_bytes": size, "verdict": "ok"})
    else:
        checked = "sizes match, small files' hashes match" if quick else "every hash matches"
        click.echo(f"{bundle}: {len(files)} files, {bytes_text(size)}, {checked}")
