"""Where the page's templates are, and what they may call."""

from functools import cache
from typing import TYPE_CHECKING

from edgeforge.validation import numerals, wording

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def environment() -> "Environment":
    """Everything that these templates print is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("edgeforge.validation.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    made.globals["words"] = wording
    made.globals["numbers"] = numerals
    return made
