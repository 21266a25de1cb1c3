import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from robust_fin.errors import ConfigError
from robust_fin.ranking.learners import (
    KNOTS,
    PENALTIES,
    RidgeForecast,
    expanded,
    fit_lightgbm,
    fit_ridge,
)

ONE = {"seed": 0, "threads": 1}


def normal(rows: int, features: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, features)).astype(np.float32)


def test_columns_are_the_inputs_their_bends_and_their_products() -> None:
    found = expanded(torch.tensor([[2.0, -0.5]]))
    assert found[0].tolist() == [2.0, -0.5, 3.0, 0.5, 2.0, 0.0, 1.0, 0.0, -1.0]


def test_a_forecast_is_linear_in_the_columns() -> None:
    draw = torch.Generator().manual_seed(0)
    slopes, products = torch.randn(1 + len(KNOTS), 3, generator=draw), torch.zeros(3, 3)
    products[0, 1], products[0, 2], products[1, 2] = 0.3, -0.2, 0.1
    x = normal(50)
    weights = torch.cat([slopes.flatten(), torch.tensor([0.3, -0.2, 0.1])])
    known = 0.5 + expanded(torch.from_numpy(x)) @ weights
    assert RidgeForecast(0.5, slopes, products)(x) == pytest.approx(known.numpy(), abs=1e-5)


def test_what_bends_and_what_multiplies_is_found() -> None:
    x, fresh = normal(20_000), normal(1_000, seed=1)

    def known(x: np.ndarray) -> np.ndarray:
        return 0.5 + 0.1 * np.maximum(x[:, 0] - 1, 0) - 0.05 * x[:, 1] * x[:, 2] + 0.02 * x[:, 1]

    forecast = fit_ridge(x, known(x).astype(np.float64), **ONE)
    assert forecast(fresh) == pytest.approx(known(fresh), abs=1e-4)


def test_is_ridge_on_scaled_columns_with_the_penalty_of_least_cross_validation() -> None:
    x, rng = normal(3_000), np.random.default_rng(1)
    target = 0.5 + 0.02 * x[:, 0] + 0.3 * rng.normal(size=3_000)
    columns = StandardScaler().fit_transform(expanded(torch.from_numpy(x)).double().numpy())
    values = np.linalg.eigvalsh(columns.T @ columns)
    scores, fits = [], []
    for penalty in PENALTIES * values.max():
        other = SklearnRidge(alpha=penalty).fit(columns, target)
        left = np.mean((target - other.predict(columns)) ** 2)
        scores.append(left / (1 - np.sum(values / (values + penalty)) / 3_000) ** 2)
        fits.append(other.predict(columns))
    best = int(np.argmin(scores))
    assert 0 < best < len(PENALTIES) - 1
    assert fit_ridge(x, target, **ONE)(x) == pytest.approx(fits[best], abs=2e-5)


def test_pure_noise_is_shrunk_to_almost_nothing() -> None:
    x, rng = normal(5_000, features=10), np.random.default_rng(1)
    forecast = fit_ridge(x, rng.random(5_000), **ONE)(normal(5_000, features=10, seed=2))
    assert forecast.mean() == pytest.approx(0.5, abs=0.02)
    assert forecast.std() < 0.02  # without a penalty 0.04


def test_a_constant_input_and_a_single_one_are_fitted() -> None:
    x = normal(500, features=2)
    x[:, 1] = 0.7
    target = 0.5 + 0.1 * x[:, 0].astype(np.float64)
    assert fit_ridge(x, target, **ONE)(x) == pytest.approx(target, abs=1e-3)
    assert fit_ridge(x[:, :1], target, **ONE)(x[:, :1]) == pytest.approx(target, abs=1e-3)


def test_trees_find_what_ridge_cannot_and_do_so_twice_alike() -> None:
    pytest.importorskip("lightgbm")
    x = normal(20_000)
    target = 0.5 + 0.2 * (np.sin(6 * x[:, 0]) > 0)
    trees, ridge = (fit(x, target, **ONE)(x) for fit in (fit_lightgbm, fit_ridge))
    assert np.corrcoef(trees, target)[0, 1] > 0.95 > np.corrcoef(ridge, target)[0, 1] + 0.5
    assert np.array_equal(fit_lightgbm(x, target, **ONE)(x), trees)


def test_trees_that_are_not_installed_are_named_with_their_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"pip install 'robust-fin\[boost\]'.*learner=ridge"):
        fit_lightgbm(normal(10), np.zeros(10), **ONE)
