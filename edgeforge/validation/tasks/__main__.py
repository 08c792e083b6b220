"""lm-eval's own command line, which knows the model `edgeforge` as well:

    edgeforge-lm-eval --model edgeforge --model_args bundle=DIR --tasks lambada_openai --limit 100

Every option is lm-eval's, with one addition: `--data DIR` reads datasets from local files (`sources`). lm-eval 0.4.13
finds models in its own table and nowhere else (no entry points, no path for code), so its bare command `lm_eval` cannot
know this one: something must register it first, which is what this module does.
"""

import sys
from pathlib import Path

from edgeforge.errors import EdgeForgeError, MissingDependency
from edgeforge.runtime import BundleError
from edgeforge.validation.tasks.borrowed import datasets_from


def main(arguments: list[str] | None = None) -> None:
    """Run lm-eval with `arguments` (default: the process's)."""
    given, data = _take_data(sys.argv[1:] if arguments is None else arguments)
    try:
        with datasets_from(data):
            register()
            from lm_eval.__main__ import cli_evaluate

            sys.argv = ["lm_eval", *given]
            cli_evaluate()
    except (EdgeForgeError, BundleError) as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint is not None:
            sys.stderr.write(f"hint: {error.hint}\n")
        raise SystemExit(error.exit_code) from None


def register() -> None:
    """Make `edgeforge` known to lm-eval in this process."""
    try:
        from lm_eval.api.registry import model_registry, register_model
    except ImportError as error:
        raise MissingDependency(f"this needs lm-eval: {error}", hint="pip install 'edgeforge[tasks]'") from None
    if "edgeforge" not in model_registry:
        from edgeforge.validation.tasks.harness import BundleLM

        register_model("edgeforge")(BundleLM)


def _take_data(arguments: list[str]) -> tuple[list[str], Path | None]:
    """lm-eval's arguments, and the folder that `--data` names."""
    for place, argument in enumerate(arguments):
        if argument == "--data" and place + 1 < len(arguments):
            return arguments[:place] + arguments[place + 2 :], Path(arguments[place + 1])
        if argument.startswith("--data="):
            return arguments[:place] + arguments[place + 1 :], Path(argument.removeprefix("--data="))
    return arguments, None


if __name__ == "__main__":
    main()
