"""`edgeforge serve`: a bundle behind OpenAI's interface."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

import click

from edgeforge.cli import options

UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


def byte_count(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Reads `500kB`, `4MB`, `1.5GB` or a plain number of bytes."""
    if value is None:
        return None
    read = re.fullmatch(r"(\d+(?:\.\d+)?) ?(kB|MB|GB|)", value)
    if read is None:
        raise click.BadParameter(f"{value!r} is not a size, such as 500kB, 4MB or 1.5GB")
    return int(float(read[1]) * UNITS[read[2]])


def printable(ctx: click.Context, param: click.Parameter, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Keys that a header can carry."""
    if not all(re.fullmatch(r"[!-~]+", key) for key in keys):
        raise click.BadParameter("a key is one or more printable ASCII characters without spaces")
    return keys


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, metavar="NAME", help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N", help="0: any that is free."
)
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    callback=printable,
    envvar="EDGEFORGE_API_KEY",
    show_envvar=True,
    metavar="KEY",
    help="Answer only to who sends this key; may be given often.",
)
@click.option(
    "--served-model-name", "name", metavar="NAME", help="What clients call the model.  [default: the bundle's folder]"
)
@click.option(
    "--batch",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Answers computed at once.  [default: 8, on a GPU 1]",
)
@click.option(
    "--queue",
    "places",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    metavar="N",
    help="Answers that wait.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=600,
    show_default=True,
    metavar="S",
    help="Seconds from a request to the end of its answer.",
)
@click.option(
    "--max-body",
    "body_bytes",
    callback=byte_count,
    default="4MB",
    show_default=True,
    metavar="SIZE",
    help="Largest request.",
)
@click.option(
    "--prefix-cache",
    "prefix_cache_bytes",
    callback=byte_count,
    metavar="SIZE",
    help="Memory for prompts that begin alike; 0 for none.  [default: one whole context]",
)
@click.option(
    "--exact",
    is_flag=True,
    help="Greedy answers do not depend, by rounding, on who else is answered; slower for several at once.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin ask (CORS); may be given often.  [default: none]",
)
@options.threads_option
@options.device_option
def serve(
    bundle: Path,
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    name: str | None,
    batch: int | None,
    places: int,
    timeout_s: float,
    body_bytes: int,
    prefix_cache_bytes: int | None,
    exact: bool,
    origins: tuple[str, ...],
    threads: int | None,
    device: Literal["cpu", "cuda"] | None,
) -> None:
    """Answer with BUNDLE over HTTP, as OpenAI's interface does: chats, texts, streams, tools, JSON Schema.

    Any client of OpenAI's works with http://HOST:PORT/v1 as its base URL; a page to chat is at http://HOST:PORT/.
    Ctrl-C finishes the answers that run, a second one ends at once.

    \b
    Examples:
      edgeforge serve artifacts/demo-cpu
      edgeforge serve artifacts/demo-cpu --port 8080 --batch 4 --api-key "$KEY"
    """
    from edgeforge.cli.console import note
    from edgeforge.runtime import load

    _check_packages()
    from edgeforge.runtime.engine import CPU_BATCH
    from edgeforge.serving.app import Settings
    from edgeforge.serving.endpoint import Limits
    from edgeforge.serving.server import listen
    from edgeforge.serving.server import serve as serve_forever

    bound = listen(host, port)  # before seconds go into loading
    is_loopback = ip_address(bound.getsockname()[0]).is_loopback
    model = load(
        bundle, threads=threads, device=device, batch=batch, prefix_cache_bytes=prefix_cache_bytes, exact=exact
    )
    model.warm_up()
    settings = Settings(
        name=name or bundle.resolve().name,
        slots=batch or (CPU_BATCH if model.device == "cpu" else 1),
        places=places,
        limits=Limits(body_bytes=body_bytes, answer_s=timeout_s),
        api_keys=api_keys,
        hosts=(*LOOPBACK_NAMES, host) if is_loopback and not api_keys else (),
        origins=origins,
    )
    if not is_loopback and not api_keys:
        note(f"warning: whoever reaches {host} may ask this server; --api-key asks for a key")
    place = f"{settings.name} answers at {_address(bound.getsockname())} (Ctrl-C stops)"
    serve_forever(model, settings, bound, ready=lambda: note(place))


def _check_packages() -> None:
    """MissingDependency where the extra is not installed."""
    from importlib.util import find_spec

    from edgeforge.errors import MissingDependency

    missing = [
        package for package in ("starlette", "uvicorn", "pydantic", "prometheus_client") if not find_spec(package)
    ]
    if missing:
        raise MissingDependency(
            f"`edgeforge serve` needs {', '.join(missing)}", hint="python -m pip install 'edgeforge[serve]'"
        )


def _address(name: tuple[str, int]) -> str:
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
