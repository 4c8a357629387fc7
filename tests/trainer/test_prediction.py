"""Linear prediction of codes: without loss for any coefficients, exact, and worth it where rows depend on others."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from trainer import prediction


def below(rows: int, seed: int) -> np.ndarray:
    """Random coefficients below the diagonal, up to the limit."""
    limit = prediction.MAX_COEFFICIENT
    return np.tril(np.random.default_rng(seed).integers(-limit, limit + 1, (rows, rows)), -1).astype(np.int8)


@given(
    st.integers(1, 150),
    st.integers(1, 20),
    st.sampled_from([(-127, 127), (-31, 31), (-2, 1), (-128, 126), (0, 5), (-7, 0)]),
    st.integers(0, 99),
)
def test_restoring_gives_what_was_predicted(rows: int, cols: int, bounds: tuple[int, int], seed: int) -> None:
    """restore is the inverse of residual for all codes and coefficients, and what is left keeps the bounds."""
    codes = np.random.default_rng(seed).integers(bounds[0], bounds[1] + 1, (rows, cols)).astype(np.int8)
    coefficients = below(rows, seed)
    rest = prediction.residual(codes, coefficients, *bounds)
    assert bounds[0] <= rest.min() <= rest.max() <= bounds[1]
    assert (prediction.restore(rest, coefficients, *bounds) == codes).all()


def test_prediction_is_the_formula_at_its_limits() -> None:
    """⌊Σ k·row / 32 + ½⌋ in integers, clipped, for the largest sums that MAX_ROWS rows give."""
    rows, limit = prediction.MAX_ROWS, prediction.MAX_COEFFICIENT
    codes = np.full((rows, 2), 127, np.int8)
    codes[:, 1] = np.random.default_rng(0).integers(-127, 128, rows)
    coefficients = np.tril(np.full((rows, rows), limit, np.int8), -1)
    coefficients[1::2] = below(rows, 0)[1::2]
    predicted = (coefficients.astype(np.int64) @ codes.astype(np.int64) + 16 >> 5).clip(-127, 127)
    rest = prediction.residual(codes, coefficients, -127, 127)
    assert ((rest + predicted - codes) % 255 == 0).all()
    assert (prediction.restore(rest, coefficients, -127, 127) == codes).all()


def test_fit_finds_what_rows_depend_on() -> None:
    """Rows that are sums of rows above, plus noise, get those rows' coefficients to a step, others none."""
    random = np.random.default_rng(0)
    codes = random.integers(-40, 41, (6, 4000)).astype(np.float64)
    codes[3] = 0.5 * codes[0] - 0.25 * codes[1] + random.normal(size=4000)
    codes[5] = 0.75 * codes[3] + random.normal(size=4000)
    found = prediction.fit(np.rint(codes).astype(np.int8)).astype(int)
    assert abs(found[3] - [16, -8, 0, 0, 0, 0]).max() <= 1
    assert abs(found[5] - [0, 0, 0, 24, 0, 0]).max() <= 1


@pytest.mark.parametrize("codes", [np.zeros((5, 9)), np.ones((5, 9)), np.outer([1, 2, -3, 0, 1], np.arange(9))])
def test_rows_that_repeat_others_are_fitted(codes: np.ndarray) -> None:
    """Zero, equal and proportional rows, whose G is singular, give finite coefficients and come back."""
    rows = codes.astype(np.int8)
    coefficients = prediction.fit(rows)
    rest = prediction.residual(rows, coefficients, -127, 127)
    assert abs(rest[1:].astype(int)).sum() <= abs(rows[1:].astype(int)).sum()
    assert (prediction.restore(rest, coefficients, -127, 127) == rows).all()


def test_weights_count_quiet_columns_more() -> None:
    """A column's weight falls with the square of what is left in it, within 1 and 2^14, and moves the fit."""
    rest = np.repeat(np.array([[0, 1, 10, 127]], np.int8), 3, axis=0)
    weights = prediction.column_weights(rest)
    assert weights.tolist() == sorted(weights.tolist(), reverse=True)
    assert weights[0] == 1 << 14
    assert weights[-1] >= 1
    random = np.random.default_rng(0)
    codes = np.rint(np.stack([random.normal(size=400) * 20, random.normal(size=400) * 20])).astype(np.int8)
    codes[1, 200:] = codes[0, 200:]
    even = prediction.fit(codes)[1, 0]
    quiet = prediction.fit(codes, np.where(np.arange(400) < 200, 1, 100))[1, 0]
    assert even < 24
    assert quiet > 30
