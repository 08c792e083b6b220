"""What `python BUNDLE "prompt"` does: answer on stdout, errors on stderr, exit codes as in the toolchain."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BundleError

if TYPE_CHECKING:
    from .model import Model
    from .stream import Stream


def main(arguments: Sequence[str], *, bundle: Path) -> int:
    """Run the command line and return the exit status."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as end:  # argparse has printed the help, or what is wrong
        return int(end.code or 0)
    try:
        return _answer(options, bundle)
    except BundleError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        sys.stderr.close()
        return 0
    except MemoryError as error:
        sys.stderr.write(f"error: {error or 'there is not enough memory for this model'}\n")
        return 8


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python BUNDLE",
        description="Answer a prompt with the model in this folder.",
        epilog='example: python BUNDLE "What is the capital of France?"',
    )
    parser.add_argument("prompt", help="the question; - reads it from standard input")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the question")
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it stands, without the chat template"
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", default=512, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, metavar="T", default=0.0, help="0, the default, is greedy")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: what the bundle was built for")
    parser.add_argument(
        "--verify", choices=("quick", "full"), default="quick", help="how much to hash before the start"
    )
    return parser


def _answer(options: argparse.Namespace, bundle: Path) -> int:
    from . import load

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    model = load(bundle, threads=options.threads, verify=options.verify, device=options.device)
    for chunk in _chunks(model, prompt, options):
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def _chunks(model: "Model", prompt: str, options: argparse.Namespace) -> "Stream":
    if options.raw or model.chat_template is None:
        ids = model.encode(prompt)
    else:
        system = [{"role": "system", "content": options.system}] if options.system else []
        ids = model.chat_ids([*system, {"role": "user", "content": prompt}])
    return model.generate(
        ids,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )
