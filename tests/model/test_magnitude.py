"""The largest magnitude, on the bits."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.model.magnitude import largest, largest_of_raw

TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", TYPES)
def test_it_is_what_numpy_finds_on_the_numbers(dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal((7, 33)).astype(TYPES[dtype])
    assert largest_of_raw(values.copy(), dtype) == np.abs(values.astype(np.float32)).max()


@pytest.mark.parametrize("worst", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_not_a_number_is_the_largest(dtype: str, worst: float) -> None:
    values = np.array([1, worst, -3], TYPES[dtype])
    np.testing.assert_array_equal(largest_of_raw(values, dtype), np.float32(abs(worst)))


def test_of_nothing_it_is_zero_and_its_argument_stays() -> None:
    assert largest(np.empty((0, 4), np.float32)) == 0
    values = np.array([-2, 1], np.float32)
    assert largest(values) == 2
    assert values[0] == -2


def test_a_tensor_has_the_magnitude_of_its_rows(stories: Path) -> None:
    checkpoint = open_checkpoint(str(stories))
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        rows = tensor.shape[0]
        for start, stop in ((0, rows), (rows // 3, rows - 1)):
            assert tensor.magnitude(start, stop) == np.abs(tensor.rows(start, stop)).max()
