"""Options of the commands that talk to a registry."""

import click

plain_http_option = click.option(
    "--plain-http", is_flag=True, help="Talk HTTP without TLS to the registry, which is never done unasked."
)
attempts_option = click.option(
    "--attempts",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="How often a request is made before it is given up.",
)
chunk_option = click.option(
    "--chunk-mib",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="N",
    help="Size of a chunk of a large file, after which an interrupted push goes on, in MiB.",
)
