import numpy as np
import pytest
from sklearn.linear_model import Ridge as Reference

from robust_fin.training.baselines import Ridge


def sample(rows: int = 400, *, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4)) * [1.0, 10.0, 0.01, 3.0] + [0.0, 5.0, 100.0, -2.0]
    return x, x @ [1.0, -0.2, 30.0, 0.0] + noise * rng.normal(size=rows)


def test_weights_are_those_of_the_reference_at_the_same_penalty() -> None:
    x, y = sample(noise=50.0)
    found = Ridge.fit(x, y)
    unit = (x - x.mean(axis=0)) / np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=0))
    expected = Reference(alpha=found.penalty).fit(unit, y).predict(unit)
    assert found.forecast(x) == pytest.approx(expected, rel=1e-8)


def test_the_penalty_has_the_least_generalised_validation_error() -> None:
    x, y = sample(rows=60, noise=10.0)
    unit = (x - x.mean(axis=0)) / np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=0))

    def error(penalty: float) -> float:
        hat = unit @ np.linalg.solve(unit.T @ unit + penalty * np.eye(4), unit.T) + 1 / 60
        left = y - hat @ y  # the mean is in the hat
        return float(np.mean(left**2)) / (1 - np.trace(hat) / 60) ** 2

    penalties = np.logspace(-8, 2, 21)
    best = min(penalties, key=error)
    assert Ridge.fit(x, y).penalty == pytest.approx(best)
    assert 1e-3 < best < 100  # a choice inside the grid, so that the test says something


def test_a_line_is_found_exactly() -> None:
    x, y = sample(noise=0.0)
    assert Ridge.fit(x, y).forecast(x) == pytest.approx(y, rel=1e-6)


def test_a_feature_that_never_changes_has_no_weight() -> None:
    x, y = sample()
    x[:, 1] = 7.3
    found = Ridge.fit(x, y)
    assert found.weights[1] == 0.0
    assert found.forecast(x) == pytest.approx(
        Ridge.fit(np.delete(x, 1, axis=1), y).forecast(np.delete(x, 1, axis=1)), rel=1e-9
    )


def test_one_feature_twice_is_no_trouble() -> None:
    x, y = sample()
    twice = Ridge.fit(np.concatenate([x, x], axis=1), y).forecast(np.concatenate([x, x], axis=1))
    assert twice == pytest.approx(Ridge.fit(x, y).forecast(x), rel=1e-4)


def test_float32_rows_in_pieces_are_summed_in_float64() -> None:
    rng = np.random.default_rng(0)
    x = (1000.0 + rng.normal(size=(140_000, 2))).astype(np.float32)
    y = 0.5 + 0.01 * (x[:, 0].astype(np.float64) - 1000.0)
    assert Ridge.fit(x, y).forecast(x) == pytest.approx(y, abs=1e-6)


def test_no_rows_no_forecast() -> None:
    x, y = sample()
    assert Ridge.fit(x, y).forecast(x[:0]).tolist() == []
