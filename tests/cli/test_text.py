"""Figures and tables: aligned, with units, no trailing spaces."""

import pytest

from edgeforge.cli.text import bytes_text, fields, plus_minus, table


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.00 kB"),
        (98_362_432, "98.4 MB"),
        (999_600, "1.00 MB"),
        (1_088_000_000, "1.09 GB"),
        (203_000_000_000, "203 GB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_sizes_have_three_digits_and_a_decimal_unit(count: int, expected: str) -> None:
    assert bytes_text(count) == expected


def test_fields_align_their_values() -> None:
    assert fields([("a", "1"), ("long", "2\n3")], indent=0) == "a     1\nlong  2\n      3"


def test_tables_align_their_columns() -> None:
    text = table(("Name", "Size"), [("a", "10"), ("long name", "9")], right=frozenset({1}))
    assert text == "Name       Size\na            10\nlong name     9"


def test_figures_carry_their_error() -> None:
    assert plus_minus(23.2371, 0.3149, 2) == "23.24 ± 0.31"
