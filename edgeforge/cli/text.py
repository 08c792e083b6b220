"""How figures and tables look on a terminal."""

from collections.abc import Sequence


def bytes_text(count: int) -> str:
    """Decimal units, three or four significant digits: 98.4 MB, 1.09 GB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "bytes":
        return f"{count} bytes"
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}" if value >= 10 else f"{value:.2f} {unit}"


def decode_text(tokens_per_s: float) -> str:
    """1,203 or 27.4, tokens per second."""
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.1f}"


def plus_minus(value: float, standard_error: float, digits: int) -> str:
    """`23.24 ± 0.31`"""
    return f"{value:.{digits}f} ± {standard_error:.{digits}f}"


def fields(pairs: Sequence[tuple[str, str]], *, indent: int = 2) -> str:
    """Labels on the left, values aligned; a value of several lines keeps its column."""
    width = max((len(label) for label, _ in pairs), default=0)
    lines = []
    for label, value in pairs:
        first, *rest = value.split("\n")
        lines.append(f"{' ' * indent}{label:<{width}}  {first}".rstrip())
        lines += [f"{' ' * (indent + width + 2)}{line}" for line in rest]
    return "\n".join(lines)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Columns padded to their widest cell, two spaces apart; columns in `right` are right-aligned."""
    every = [headers, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in every
    )
