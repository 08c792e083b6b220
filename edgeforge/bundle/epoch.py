"""The one time that a bundle may tell: SOURCE_DATE_EPOCH, where whoever builds sets it (reproducible-builds.org)."""

import os
from datetime import UTC, datetime

from edgeforge.errors import UsageError


def source_date() -> datetime | None:
    """SOURCE_DATE_EPOCH as a time in UTC, None where it is not set; UsageError where it is no number of seconds."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {text!r}, not a number of seconds since 1970",
            hint="git log -1 --format=%ct gives one; unset it to build without a time",
        ) from None
