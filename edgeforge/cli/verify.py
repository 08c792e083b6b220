"""`edgeforge verify`: every byte of a bundle against its manifest, and the bundle against its signature."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeforge.cli.options import json_option, quiet_option
from edgeforge.cli.trust_options import trust_options

if TYPE_CHECKING:
    from edgeforge.bundle.signature import Trust
    from edgeforge.runtime.parity import Checked


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Sizes of all files, hashes of the small ones only.")
@trust_options
@json_option
@quiet_option
def verify(bundle: Path, quick: bool, trust: "Trust | None", as_json: bool, quiet: bool) -> None:
    """Check every byte of BUNDLE against its manifest and SHA256SUMS, and that its tokenizer and chat template make of
    fixed texts what the original's do; with --key, --certificate or --identity, its signature too.

    A changed, missing or extra file is named and ends with exit code 6, and so do other ids or another prompt, and a
    signature that is missing, of other files, or of somebody else. Without a name to trust, a signature is not looked
    at.

    \b
    Examples:
      edgeforge verify artifacts/demo-cpu
      edgeforge verify artifacts/demo-cpu --quick
      edgeforge verify artifacts/demo-cpu --key pub.pem
      edgeforge verify artifacts/demo-cpu --certificate root.pem
      edgeforge verify artifacts/demo-cpu --identity me@example.org --identity-provider https://accounts.google.com
    """
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.progress import Progress
    from edgeforge.cli.text import bytes_text
    from edgeforge.errors import UsageError
    from edgeforge.runtime.integrity import SIGNATURE_NAME
    from edgeforge.runtime.integrity import verify as verify_bundle
    from edgeforge.runtime.parity import check_parity

    if quick and trust is not None:
        raise UsageError("a signature is over every byte, which --quick does not read", hint="leave out --quick")
    if trust is not None:
        from edgeforge.bundle.signature import check_trust, verify_signature

        check_trust(trust)
    level: Literal["quick", "full"] = "quick" if quick else "full"
    with Progress(quiet=quiet or as_json) as progress:
        manifest = verify_bundle(bundle, level, lambda done, total: progress("verify", done, total))
    if trust is not None:
        verify_signature(bundle, trust)
    parity = None if quick else check_parity(bundle, manifest)
    files, signed = manifest.files, (bundle / SIGNATURE_NAME).is_file()
    size = sum(file.size for file in files.values())
    state = "proved" if trust is not None else "not checked" if signed else "none"
    if as_json:
        document = {"bundle": str(bundle), "level": level, "files": len(files), "size_bytes": size}
        emit_json({**document, "signature": state, "parity": parity and asdict(parity), "verdict": "ok"})
        return
    checked = "sizes match, small files' hashes match" if quick else "every hash matches"
    told = {
        "proved": ", and the signature holds",
        "not checked": f"; {SIGNATURE_NAME} was not checked (say whom to trust: --key, --certificate, --identity)",
        "none": "",
    }
    click.echo(f"{bundle}: {len(files)} files, {bytes_text(size)}, {checked}{_parity_told(parity)}{told[state]}")


def _parity_told(parity: "Checked | None") -> str:
    if parity is None:
        return ""
    if not parity.chats:
        return f", {parity.texts} texts become the original's ids"
    told = f", {parity.texts} texts and {parity.chats} chats become the original's ids"
    return told if parity.rendered else f"{told} (the chat template was not rendered: pip install jinja2)"
