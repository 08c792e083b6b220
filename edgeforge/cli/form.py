"""Options that hold an answer to a form: a JSON Schema, a regular expression, a grammar."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeforge.runtime.constraint import Constraint
    from edgeforge.runtime.model import Model

_FILE = click.Path(path_type=Path)
_OPTIONS = (
    click.option("--json-schema", type=_FILE, metavar="FILE", help="Answer with JSON that satisfies this JSON Schema."),
    click.option("--regex", metavar="PATTERN", help="Answer with what matches this regular expression."),
    click.option("--grammar", type=_FILE, metavar="FILE", help="Answer with what this Lark grammar makes of `start`."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the answer must look like; at most one of them."""

    json_schema: Path | None
    regex: str | None
    grammar: Path | None

    def guide(self, model: "Model", max_tokens: int) -> "Constraint | None":
        """For one answer of at most `max_tokens`, within which JSON is whole. UnusableBundle for a form that is none;
        MissingRequirement without llguidance.
        """
        from edgeforge.runtime import guidance
        from edgeforge.runtime.ending import EndingGuide

        if self.json_schema is not None:
            return EndingGuide(guidance.json_schema(model, _read(self.json_schema)), max_tokens)
        if self.regex is not None:
            return guidance.regex(model, self.regex)
        return None if self.grammar is None else guidance.grammar(model, _read(self.grammar))


def form_options(command: Callable[..., None]) -> Callable[..., None]:
    """The three options, handed to the command as one argument: `form`."""

    @wraps(command)
    def gathered(*, json_schema: Path | None, regex: str | None, grammar: Path | None, **others: object) -> None:
        if sum(value is not None for value in (json_schema, regex, grammar)) > 1:
            raise click.UsageError("an answer has one form: give one of --json-schema, --regex and --grammar")
        command(form=Form(json_schema=json_schema, regex=regex, grammar=grammar), **others)

    return reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), gathered)


def _read(path: Path) -> str:
    from edgeforge.errors import UnusableInput

    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UnusableInput(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UnusableInput(f"{path} cannot be read: {error.strerror}", hint="give the path of a text file") from None
