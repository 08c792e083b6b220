"""The rotation's matrix: orthogonal at every size, spread evenly, and the same bits everywhere."""

import hashlib

import numpy as np
import pytest

from edgeforge.model.orthogonal import Orthogonal, orthogonal

SMALL = (1, 2, 3, 12, 64, 172, 173, 288, 576)
LARGE = (960, 2048, 3072, 4096, 5120, 8192, 16384)


def walsh(power: int) -> np.ndarray:
    """Sylvester's construction, H_2n = [[H, H], [H, -H]]."""
    return np.array([[1]]) if power == 1 else np.kron(walsh(power // 2), [[1, 1], [1, -1]])


def dense(q: Orthogonal) -> np.ndarray:
    """Q from its definition, in float64."""
    power = q.size & -q.size
    return np.diag(q.factors.astype(float)) @ np.kron(q.odd.astype(float), walsh(power))


@pytest.mark.parametrize("size", SMALL)
def test_products_are_those_with_the_matrix_itself(size: int) -> None:
    q, rng = orthogonal(size, 0), np.random.default_rng(size)
    x = rng.standard_normal((5, size), dtype=np.float32)
    w = rng.standard_normal((size, 21), dtype=np.float32)
    rows, columns = x.copy(), w.copy()
    q.turn_rows(rows)
    q.turn_columns(columns)
    assert np.abs(rows - x @ dense(q)).max() < 4e-6
    assert np.abs(columns - dense(q).T @ w).max() < 4e-6


@pytest.mark.parametrize("size", SMALL)
def test_it_is_orthogonal_and_no_entry_stands_out(size: int) -> None:
    matrix = dense(orthogonal(size, 0))
    assert np.abs(matrix @ matrix.T - np.eye(size)).max() < 1e-6
    assert np.abs(matrix).max() <= np.sqrt(2 / size) * (1 + 1e-6)


@pytest.mark.parametrize("size", LARGE)
def test_it_is_orthogonal_at_the_sizes_of_real_models(size: int) -> None:
    """Of a Kronecker product: where its factors are. Of the product: where lengths and angles stay."""
    q = orthogonal(size, 0)
    odd = q.odd.astype(float)
    assert np.abs(odd @ odd.T - np.eye(len(odd))).max() < 1e-6
    assert (q.factors**2 * (size & -size) == pytest.approx(1.0)) and set(np.sign(q.factors)) == {-1.0, 1.0}
    x = np.random.default_rng(0).standard_normal((3, size), dtype=np.float32)
    turned = x.copy()
    q.turn_rows(turned)
    assert np.abs(turned.astype(float) @ turned.T - x.astype(float) @ x.T).max() < 1e-5 * size
    spike = np.zeros((1, size), np.float32)
    spike[0, size // 3] = 1
    q.turn_rows(spike)
    assert np.abs(spike).max() <= np.sqrt(2 / size) * (1 + 1e-6)


def test_rows_and_columns_are_turned_alike_whatever_comes_with_them() -> None:
    q, rng = orthogonal(576, 0), np.random.default_rng(0)
    x = rng.standard_normal((700, 576), dtype=np.float32)  # several panels
    rows, columns = x.copy(), np.ascontiguousarray(x.T)
    q.turn_rows(rows)
    q.turn_columns(columns)
    assert np.array_equal(rows, columns.T)
    one = x[433:434].copy()
    q.turn_rows(one)
    assert np.array_equal(rows[433:434], one)


def test_the_seed_draws_the_signs() -> None:
    first, second = orthogonal(4096, 0).factors, orthogonal(4096, 1).factors
    assert np.array_equal(first, orthogonal(4096, 0).factors)
    assert 0.4 < np.mean(first == second) < 0.6


def test_the_bits_are_these_on_every_machine() -> None:
    """Sums in another order would give others."""
    q = orthogonal(576, 0)
    x = (np.arange(3 * 576, dtype=np.float32).reshape(3, 576) % 37 - 18) / np.float32(7)
    q.turn_rows(x)
    assert (
        hashlib.sha256(x.astype("<f4").tobytes()).hexdigest()
        == "0316c455eadc7994b7a2e1975454f7c4dfbd2d75d09e8d34ab91bf0e278b49c5"
    )
