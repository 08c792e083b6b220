"""`edgeforge cache`: what is kept between runs, and away with it."""

import click

from edgeforge.cli.options import json_option


@click.command()
@click.argument("names", nargs=-1, metavar="[ENTRY]...")
@click.option("--prune", "remove", is_flag=True, help="Remove the entries; all of them where none is named.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="With --prune: only what has not changed for so many days.",
)
@json_option
def cache(names: tuple[str, ...], remove: bool, older_than: float | None, as_json: bool) -> None:
    """List what EdgeForge keeps between runs, with sizes and ages; --prune removes it.

    Everything there can be fetched or made again. It lies in EDGEFORGE_CACHE, else in ~/.cache/edgeforge. Checkpoints
    from the hub are in the hub's own cache, which `hf cache` manages.

    \b
    Examples:
      edgeforge cache
      edgeforge cache --prune --older-than 30
      edgeforge cache --prune demo
    """
    from dataclasses import asdict

    from edgeforge.cli.console import emit_json
    from edgeforge.cli.text import bytes_text, table
    from edgeforge.errors import UsageError
    from edgeforge.model import cache as stored
    from edgeforge.model.hub import cache_folder

    unknown = [name for name in names if name not in stored.ENTRIES]
    if unknown:
        raise UsageError(f"the cache has no entry {unknown[0]!r}", hint=f"there are {', '.join(stored.ENTRIES)}")
    if older_than is not None and not remove:
        raise UsageError("--older-than is for --prune", hint="add --prune")
    wanted = names or tuple(stored.ENTRIES)
    if remove:
        found = stored.prune(wanted, older_than_days=older_than or 0)
    else:
        found = tuple(entry for entry in stored.entries() if entry.name in wanted)
    size = sum(entry.size_bytes for entry in found)
    if as_json:
        listed = [{**asdict(entry), "path": str(entry.path)} for entry in found]
        emit_json({"folder": str(cache_folder()), "pruned": remove, "entries": listed, "size_bytes": size})
        return
    if found:
        rows = [(each.name, bytes_text(each.size_bytes), f"{each.age_days:.0f} days", each.what) for each in found]
        click.echo(table(("entry", "size", "unchanged for", "holds"), rows, right=frozenset({1, 2})))
    click.echo(f"{'removed' if remove else 'holds'} {bytes_text(size)}: {cache_folder()}")
