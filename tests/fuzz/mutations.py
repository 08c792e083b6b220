"""Damage that knows what it damages: bytes, JSON, TOML, safetensors and GGUF. Chance comes from a `random.Random`.

Hypothesis hands one out whose every choice it controls; `run.py` seeds its own.
"""

import json
import struct
from collections.abc import Callable
from random import Random

Mutation = Callable[[bytes, Random], bytes]

_INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 2, 255, 4096, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**64 - 1, 10**30)
_DEPTH = 3000  # beyond any recursion limit that Python ships with


def _odd_values(random: Random) -> list[object]:
    deep: object = []
    for _ in range(40):
        deep = [deep]
    words = [
        "",
        "a" * 5000,
        "\ud800",
        "\0",
        "../../../etc/passwd",
        "/etc/passwd",
        "NaN",
        "sha256:0",
        "-1",
        "é" * 300,
        "{{",
    ]
    numbers = [
        float("nan"),
        float("inf"),
        -0.0,
        1e308,
        5e-324,
        0.1,
        1e30,
        random.choice(_INTEGERS),
        random.randint(-9, 99),
    ]
    lists = [[], [None], [0] * 1000, [[]] * 50, {}, {"": None}, {"a": {"b": 1}}, deep]
    return [None, True, False, *words, *numbers, *lists]


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """A few flips, cuts, insertions, and overwritten lengths."""
    content = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if not content:
            return random.randbytes(random.randint(0, 64))
        at = random.randrange(len(content))
        match random.randrange(8):
            case 0:
                content[at] ^= 1 << random.randrange(8)
            case 1:
                content[at] = random.randrange(256)
            case 2:
                del content[at:]
            case 3:
                del content[at : at + random.randint(1, 16)]
            case 4:
                content[at:at] = random.randbytes(random.randint(1, 16))
            case 5:
                _overwrite(content, at, random)
            case 6:
                other = random.randrange(len(content))
                content[at:at] = content[other : other + random.randint(1, 64)]
            case 7:
                content[at : at + 8] = b"\0" * 8
    return bytes(content)


def _overwrite(content: bytearray, at: int, random: Random) -> None:
    """An integer that counts or points too far."""
    width = random.choice((1, 2, 4, 8))
    value = random.choice((*_INTEGERS, len(content), len(content) - at, 1 << random.randrange(64)))
    content[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def mutate_json(data: bytes, random: Random) -> bytes:
    """Values of other types and sizes, keys that are missing, wrong or twice, depth, numbers beyond all types."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, random)
    for _ in range(random.randint(1, 3)):
        value = _changed(value, random)
    text = json.dumps(value)
    kind = random.randrange(12)
    if kind == 0:
        text = text.replace("{", '{"twice": 1, "twice": 2, ', 1)
    elif kind == 1:
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(("[" * _DEPTH, '{"a":' * _DEPTH, "9" * 5000, "1e999", "\ufeff")) + text[at:]
    elif kind == 2:
        text = text.replace("0", random.choice(("9" * 5000, "1e400", "-0", "NaN", "[" * _DEPTH + "]" * _DEPTH)), 1)
    raw = text.encode("utf-8", errors="surrogatepass")
    return mutate_bytes(raw, random) if random.randrange(4) == 0 else raw


def _changed(value: object, random: Random) -> object:
    """The tree with one place of it changed."""
    if isinstance(value, dict) and value and random.randrange(5):
        key = random.choice(list(value))
        match random.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, str(random.choice(_odd_values(random)))[:200]: value[key]}
            case 2:
                other = random.choice(list(value))
                return {**value, key: value[other]}
            case _:
                return {**value, key: _changed(value[key], random)}
    if isinstance(value, list) and value and random.randrange(5):
        at = random.randrange(len(value))
        if random.randrange(4) == 0:
            return [*value, *value[:at]]
        return [*value[:at], _changed(value[at], random), *value[at + 1 :]]
    if isinstance(value, int) and random.randrange(2):
        return random.choice((value + 1, value - 1, -value, value * 2, value << 40, value % 1000 + 0.5, str(value)))
    if isinstance(value, str) and value and random.randrange(2):
        at = random.randrange(len(value))
        return (
            value[:at] + random.choice(("", "\0", " ", "%", "é", "\n", "/", value)) + value[at + random.randrange(2) :]
        )
    return random.choice(_odd_values(random))


def mutate_toml(data: bytes, random: Random) -> bytes:
    """Lines lost, doubled and moved; values of other types; nesting."""
    lines = data.decode(errors="replace").split("\n")
    odd = (
        "",
        "-1",
        "0",
        "nan",
        "inf",
        "-inf",
        "1e400",
        '"x"',
        "true",
        "[]",
        "{}",
        "[1, 'a']",
        "9" * 5000,
        '"' + "a" * 5000,
    )
    odd += (
        "1979-05-27T07:32:00Z",
        "'../x'",
        "[" * _DEPTH,
        "{a=" * _DEPTH,
        '"\\u0000"',
        "1_000",
        "0x" + "f" * 40,
        "{ a = { b = 1 } }",
    )
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(lines))
        match random.randrange(6):
            case 0:
                del lines[at]
                lines = lines or [""]
            case 1:
                lines.insert(at, random.choice(lines))
            case 2:
                lines[at] = random.choice(("[x]", "[[x]]", "[x.y]", "a.b.c = 1", "extends = 'cpu'", "[" * _DEPTH))
            case _:
                key, equals, _ = lines[at].partition("=")
                lines[at] = f"{key}{equals} {random.choice(odd)}" if equals else lines[at]
    raw = "\n".join(lines).encode()
    return mutate_bytes(raw, random) if random.randrange(4) == 0 else raw


def mutate_lines_of_json(data: bytes, random: Random) -> bytes:
    """A journal: one line of it changed, or its bytes."""
    lines = data.split(b"\n")
    if random.randrange(3) == 0:
        return mutate_bytes(data, random)
    at = random.randrange(len(lines))
    lines[at] = mutate_json(lines[at], random)
    return b"\n".join(lines)


def mutate_safetensors(data: bytes, random: Random) -> bytes:
    """The header changed as JSON with the right length or another, or the bytes of all."""
    if len(data) < 8 or random.randrange(3) == 0:
        return mutate_bytes(data, random)
    (length,) = struct.unpack_from("<Q", data)
    header = mutate_json(data[8 : 8 + length], random)
    told = len(header) if random.randrange(4) else random.choice(_INTEGERS) % 2**64
    return struct.pack("<Q", told) + header + data[8 + length :]


def mutate_gguf(data: bytes, random: Random) -> bytes:
    """Bytes of the header above all: lengths, counts, types."""
    content = bytearray(data)
    for _ in range(random.randint(1, 3)):
        _overwrite(content, random.randrange(min(len(content), 4096)) if content else 0, random)
    return bytes(content) if random.randrange(3) else mutate_bytes(bytes(content), random)
