import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from robust_fin.data.examples import Examples
from robust_fin.data.targets import RankTarget
from robust_fin.errors import ConfigError
from robust_fin.runs.training import fit_settings, load_first_fold
from robust_fin.training.baselines import (
    GradientBoosting,
    Ridge,
    constant,
    minus_last_return,
    trivial_objective,
)
from tests.bars import config
from tests.evaluation.boards import Board
from tests.training.faults import Fault, fit_with, settings

TARGET = RankTarget.fit(np.array([-0.02, -0.01, 0.0, 0.01, 0.02]))


def examples(last_return: list[float]) -> Examples:
    rows = len(last_return)
    return Examples(
        time=np.arange(rows).astype("datetime64[ns]"),
        contract=pd.Categorical(["ESH24"] * rows),
        trading_date=np.zeros(rows).astype("datetime64[s]"),
        features=np.zeros((rows, 1)),
        last_return=np.array(last_return),
        close=np.full(rows, 5000.0),
        outcome=np.zeros(rows),
        label_end=np.arange(rows).astype("datetime64[ns]"),
        rows_in=rows,
        dropped={},
        unlabelled={},
        reports={},
    )


def test_constant_forecasts_the_training_median() -> None:
    assert constant(np.array([0, 1]), TARGET).tolist() == [0.5, 0.5]


def test_minus_last_return_is_in_rank_units() -> None:
    forecast = minus_last_return(examples([0.02, -0.02, 0.01, 0.0, 9.0]), np.arange(5), TARGET)
    assert forecast.tolist() == [0.0, 1.0, 0.25, 0.5, 0.0]


def test_minus_last_return_is_the_median_without_a_last_return() -> None:
    forecast = minus_last_return(examples([np.nan, 0.02]), np.array([0, 1]), TARGET)
    assert forecast.tolist() == pytest.approx([0.5, 0.0])


def sample(rows: int = 400, *, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4)) * [1.0, 10.0, 0.01, 3.0] + [0.0, 5.0, 100.0, -2.0]
    return x, x @ [1.0, -0.2, 30.0, 0.0] + noise * rng.normal(size=rows)


def test_ridge_matches_sklearn_at_the_same_penalty() -> None:
    x, y = sample(noise=50.0)
    ridge = Ridge.fit(x, y)
    unit = (x - x.mean(axis=0)) / np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=0))
    expected = SklearnRidge(alpha=ridge.penalty).fit(unit, y).predict(unit)
    assert ridge.forecast(x) == pytest.approx(expected, rel=1e-8)


def test_ridge_penalty_has_the_least_gcv_error() -> None:
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


def test_ridge_recovers_an_exact_line() -> None:
    x, y = sample(noise=0.0)
    assert Ridge.fit(x, y).forecast(x) == pytest.approx(y, rel=1e-6)


def test_ridge_gives_a_constant_feature_no_weight() -> None:
    x, y = sample()
    x[:, 1] = 7.3
    ridge = Ridge.fit(x, y)
    assert ridge.weights[1] == 0.0
    assert ridge.forecast(x) == pytest.approx(
        Ridge.fit(np.delete(x, 1, axis=1), y).forecast(np.delete(x, 1, axis=1)), rel=1e-9
    )


def test_ridge_accepts_duplicated_features() -> None:
    x, y = sample()
    twice = Ridge.fit(np.concatenate([x, x], axis=1), y).forecast(np.concatenate([x, x], axis=1))
    assert twice == pytest.approx(Ridge.fit(x, y).forecast(x), rel=1e-4)


def test_ridge_sums_float32_rows_in_float64() -> None:
    rng = np.random.default_rng(0)
    x = (1000.0 + rng.normal(size=(140_000, 2))).astype(np.float32)
    y = 0.5 + 0.01 * (x[:, 0].astype(np.float64) - 1000.0)
    assert Ridge.fit(x, y).forecast(x) == pytest.approx(y, abs=1e-6)


def test_ridge_forecasts_nothing_for_no_rows() -> None:
    x, y = sample()
    assert Ridge.fit(x, y).forecast(x[:0]).tolist() == []


SETTINGS = {
    "trees": 50, "learning_rate": 0.1, "leaves": 8, "min_rows": 20,
    "column_share": 1.0, "penalty": 1.0, "threads": 1, "seed": 0,
}  # fmt: skip


def test_gradient_boosting_fits_an_interaction() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2))
    y = np.sign(x[:, 0] * x[:, 1]) + 0.1 * rng.normal(size=4000)
    forecast = GradientBoosting(**SETTINGS).fit(x[:3000], y[:3000])(x[3000:])
    assert np.corrcoef(forecast, y[3000:])[0, 1] > 0.9
    again = GradientBoosting(**SETTINGS).fit(x[:3000], y[:3000])(x[3000:])
    assert forecast.tolist() == again.tolist()


def test_missing_lightgbm_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'robust-fin\[boost\]'"):
        GradientBoosting(**SETTINGS)


CASE = Fault("loss", "1e30", "middle", "plain", "32-true", 1, "stop")


@pytest.mark.parametrize("loss", ["squared", "huber", "absolute"])
def test_trivial_objective_is_the_better_of_median_and_mean(loss: str) -> None:
    composed = config(
        "+experiment=smoke", f"loss={loss}", "features=study", "source.synthetic.rows=3000"
    )
    data = load_first_fold(composed)
    target = data.target("train")
    errors = [np.abs(target - value) for value in (np.median(target), target.mean())]
    score = {
        "squared": lambda e: (e**2).mean(),
        "absolute": lambda e: e.mean(),
        "huber": lambda e: np.where(e <= 0.1, 0.5 * e**2, 0.1 * (e - 0.05)).mean(),
    }[loss]
    expected = min(map(score, errors))
    assert trivial_objective(fit_settings(composed), [data]) == pytest.approx(expected, rel=1e-5)
    assert trivial_objective(fit_settings(composed), [data, data]) == pytest.approx(
        expected, rel=1e-5
    )


def test_trivial_objective_is_nan_if_members_have_different_deltas() -> None:
    composed = config("+experiment=smoke", "loss=huber", "population.delta=[0.1,0.2]")
    assert math.isnan(trivial_objective(fit_settings(composed), []))


def test_trivial_objective_is_logged_as_a_flat_curve(tmp_path: Path) -> None:
    bars, words = load_first_fold(settings(CASE)), ("trainer.max_epochs=2",)
    fit_with(None, tmp_path, bars, *words, like=CASE)
    curve = Board(tmp_path / "tensorboard").curve("train/objective_trivial")
    assert list(curve) == [0, 11, 23]
    expected = trivial_objective(fit_settings(settings(CASE)), [bars])
    assert list(curve.values()) == pytest.approx([expected] * 3, rel=1e-6)
