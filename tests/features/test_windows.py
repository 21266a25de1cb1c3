import numpy as np
import pandas as pd
import pytest

from robust_fin.features.windows import (
    lagged,
    trailing_max,
    trailing_mean,
    trailing_min,
    trailing_sum,
)

NAN = float("nan")
SPANS = [1, 2, 3, 5, 10, 20, 59, 60, 64]


def noise(rows: int = 300) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=1e6, size=rows)


def test_small_windows_by_eye() -> None:
    values = np.array([1.0, 5.0, 2.0, 4.0, 3.0])
    same = np.testing.assert_array_equal
    same(lagged(values, 0), values)
    same(lagged(values, 2), [NAN, NAN, 1, 5, 2])
    same(lagged(values, 9), [NAN] * 5)
    same(trailing_sum(values, 3), [NAN, NAN, 8, 11, 9])
    same(trailing_mean(values, 2), [NAN, 3, 3.5, 3, 3.5])
    same(trailing_max(values, 3), [NAN, NAN, 5, 5, 4])
    same(trailing_min(values, 3), [NAN, NAN, 1, 2, 2])
    same(trailing_sum(values, 6), [NAN] * 5)


@pytest.mark.parametrize("span", SPANS)
def test_they_are_the_windows_of_pandas(span: int) -> None:
    values = noise()
    rolling = pd.Series(values).rolling(span)
    np.testing.assert_allclose(trailing_sum(values, span), rolling.sum(), rtol=1e-9, atol=1e-3)
    np.testing.assert_array_equal(trailing_max(values, span), rolling.max())
    np.testing.assert_array_equal(trailing_min(values, span), rolling.min())


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("window", [trailing_sum, trailing_mean, trailing_max, trailing_min])
def test_what_lies_before_a_window_moves_no_bit_of_it(window, span: int) -> None:
    values = noise()
    whole = window(values, span)
    for row in (span - 1, 100, 299):
        assert window(values[row - span + 1 : row + 1], span)[-1] == whole[row]
    before = np.concatenate([noise(77) * 1e9, values])
    np.testing.assert_array_equal(window(before, span)[77 + span - 1 :], whole[span - 1 :])


def test_a_table_is_summed_along_its_rows() -> None:
    table = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(trailing_sum(table, 2), [[NAN, NAN], [2, 4], [6, 8]])
