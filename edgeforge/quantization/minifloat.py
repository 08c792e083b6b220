"""Rounding to floating-point formats of a byte or less: e4m3 of FP8 (arXiv 2209.05433) and e2m1 of FP4.

A code is sign | exponent | mantissa. Below the smallest normal number 2^e0 the spacing stays that of its binade, so
with e = max(floor(log2 |x|), e0) and m mantissa bits both kinds are one formula, rounded once, half to even:

    k = round(|x| / 2^(e - m))        code = k + (e - e0) * 2^m        (k = 2^(m + 1) carries into the exponent)

|x| + 2^(e + 23 - m) in float32 is that rounding: the sum's last bits are k. Its own exponent, times 2^m, is the other
term up to a constant, which the addend brings along as an even number of last places. So a code is a dozen passes over
whole arrays, none of which holds the interpreter's lock: 1.5 ns with its scaling, where ml_dtypes' cast alone takes 7.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 18
"""Elements per pass: two scratch arrays of 1 MB stay in a core's cache, and two threads still do not wait for the
interpreter's lock (with 1 << 16 two are as fast as one)."""
EXPONENT_BITS = np.uint32(0x7F800000)
SIGN_BIT = np.uint32(0x80000000)
ONE = np.ones((1, 1), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniFloat:
    """A format: its width, its mantissa bits, the exponent of its smallest normal number, its largest number."""

    bits: int
    mantissa_bits: int
    smallest_exponent: int
    largest: float


E4M3 = MiniFloat(bits=8, mantissa_bits=3, smallest_exponent=-6, largest=448.0)
E2M1 = MiniFloat(bits=4, mantissa_bits=1, smallest_exponent=0, largest=6.0)


def round_to_minifloat(
    values: NDArray[np.float32], form: MiniFloat, scales: NDArray[np.float32] = ONE
) -> NDArray[np.uint8]:
    """Codes uint8 [R, C] of float32 values [R, C] over positive scales [R, 1] or [1, 1].

    To nearest, half to even; beyond the largest number the largest. Zeros keep their sign. A NaN's code is undefined.
    """
    rows, columns = values.shape
    values, scales = np.ascontiguousarray(values), np.broadcast_to(scales, (rows, 1))
    codes = np.empty(values.shape, np.uint8)
    step = max(1, BLOCK // max(1, columns))
    scratch = np.empty((2, min(step, rows), columns), np.float32)
    for start in range(0, rows, step):
        here = slice(start, start + step)
        _round_block(values[here], form, scales[here], scratch[:, : len(values[here])], codes[here])
    return codes


def _round_block(
    values: NDArray[np.float32],
    form: MiniFloat,
    scales: NDArray[np.float32],
    scratch: NDArray[np.float32],
    codes: NDArray[np.uint8],
) -> None:
    m, unused = form.mantissa_bits, 32 - form.bits
    # The sum's exponent field is e + 23 - m + 127; this many last places take what is not (e - e0) off again.
    places = -((23 - m + 127 + form.smallest_exponent) << m) % 2**form.bits
    binade_to_addend = np.float32(2.0 ** (23 - m) * (1 + places * 2.0**-23))
    sums, addends = scratch
    bits, addend_bits = sums.view(np.uint32), addends.view(np.uint32)
    np.divide(values, scales, out=sums)
    np.abs(sums, out=sums)
    np.minimum(sums, np.float32(form.largest), out=sums)
    np.maximum(sums, np.float32(2.0**form.smallest_exponent), out=addends)
    np.bitwise_and(addend_bits, EXPONENT_BITS, out=addend_bits)
    np.multiply(addends, binade_to_addend, out=addends)
    np.add(sums, addends, out=sums)
    # Last places and exponent, both moved to the top of the word, where whatever is above the code falls off.
    np.multiply(bits, np.uint32((1 << unused) + (1 << (unused + m - 23))), out=bits)
    np.bitwise_and(values.view(np.uint32), SIGN_BIT, out=addend_bits)
    np.bitwise_or(bits, addend_bits, out=bits)
    np.right_shift(bits, np.uint32(unused), out=bits)
    np.copyto(codes, bits, casting="unsafe")
