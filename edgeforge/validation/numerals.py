"""How reports spell numbers with their units, and words that a model wrote."""

MINUS = "\N{MINUS SIGN}"


def signed(value: float, digits: int) -> str:
    """With a sign, and a true minus; what rounds to nothing has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0.0:
        return text
    return (MINUS if value < 0 else "+") + text


def decimals(value: float, digits: int) -> str:
    """So many decimals; what few items leave unbounded is no row of hundred digits."""
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.2e}"


def percent(share: float) -> str:
    """`31.4 %`"""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def p_text(p: float | None) -> str:
    """`0.031`, `below 0.001`, or a dash where there is none."""
    if p is None:
        return "\N{EN DASH}"
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def size_text(count: int) -> str:
    """Decimal units, three significant digits: 98.4 MB, 1.09 GB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "bytes":
        return f"{count}\N{NO-BREAK SPACE}bytes"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}\N{NO-BREAK SPACE}{unit}"


def figure_text(value: float, unit: str) -> str:
    """A probe's figure: four significant digits, whole numbers whole."""
    number = f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
    return f"{number}\N{NO-BREAK SPACE}{unit}" if unit else number


def rate_text(tokens_per_s: float) -> str:
    """`1,203` or `27.4`"""
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.1f}"


def times(greater: float, lesser: float, word: str, opposite: str) -> str:
    """`2.74 times smaller`; the other way round, `1.10 times larger`; a dash where one is nothing."""
    if greater <= 0 or lesser <= 0:
        return "\N{EN DASH}"
    if 0.995 < greater / lesser < 1.005:
        return "the same"
    ratio, word = (greater / lesser, word) if greater >= lesser else (lesser / greater, opposite)
    return f"{ratio:.2f} times {word}"


def perplexity_text(value: float) -> str:
    """Three decimals, or what is left of them in a large one."""
    return f"{value:.3f}" if value < 1_000 else f"{value:,.0f}" if value < 1e6 else f"{value:.3g}"


def visible(text: str) -> str:
    """A model's words as they can be shown: control characters, marks that turn the direction of writing, and what
    UTF-8 cannot hold are spelled out, as in `⟨U+202E⟩`; line ends are \\n.
    """
    text = text.replace("\r\n", "\n")
    return "".join(f"\u27e8U+{ord(each):04X}\u27e9" if _hidden(ord(each)) else each for each in text)


def _hidden(code: int) -> bool:
    if code < 0x20 or 0x7F <= code < 0xA0:
        return code not in (0x09, 0x0A)
    turning = code in (0x61C, 0x200E, 0x200F) or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    unsound = 0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    return turning or unsound or code in (0x200B, 0x2028, 0x2029, 0xFEFF)
