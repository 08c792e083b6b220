"""Sizes as people write them."""

import re

import click

UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)


class Size(click.ParamType[int]):
    """2GB, 1.5GiB, 500 MB or 2000000000, in bytes; decimal units unless they say otherwise."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value} is no size; write 2GB or 500MB", param, ctx)
        return int(float(match.group(1)) * UNITS[(match.group(2) or "").lower()])
