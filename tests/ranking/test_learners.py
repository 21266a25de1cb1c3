import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from robust_fin.data.folds import cut_folds
from robust_fin.data.splits import Holdout, Split
from robust_fin.data.targets import RankTarget
from robust_fin.data.time_series_folds import PurgedKFold, WalkForward
from robust_fin.errors import ConfigError, SplitError
from robust_fin.ranking.importance import ScoredPart, Scorer
from robust_fin.ranking.learners import (
    KNOTS,
    PENALTIES,
    RidgeForecast,
    TrainingSpan,
    expand_columns,
    fit_lightgbm,
    fit_ridge,
)
from tests.ranking.examples import change_other_rows, make_examples_with_signal

SETTINGS = {"seed": 0, "threads": 1}


def normal(rows: int, features: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, features)).astype(np.float32)


def test_expanded_columns_are_inputs_bends_and_products() -> None:
    columns = expand_columns(torch.tensor([[2.0, -0.5]]))
    assert columns[0].tolist() == [2.0, -0.5, 3.0, 0.5, 2.0, 0.0, 1.0, 0.0, -1.0]


def test_ridge_forecast_is_linear_in_the_expanded_columns() -> None:
    draw = torch.Generator().manual_seed(0)
    slopes, products = torch.randn(1 + len(KNOTS), 3, generator=draw), torch.zeros(3, 3)
    products[0, 1], products[0, 2], products[1, 2] = 0.3, -0.2, 0.1
    x = normal(50)
    weights = torch.cat([slopes.flatten(), torch.tensor([0.3, -0.2, 0.1])])
    known = 0.5 + expand_columns(torch.from_numpy(x)) @ weights
    assert RidgeForecast(0.5, slopes, products)(x) == pytest.approx(known.numpy(), abs=1e-5)


def test_ridge_finds_bends_and_products() -> None:
    x, fresh = normal(20_000), normal(1_000, seed=1)

    def known(x: np.ndarray) -> np.ndarray:
        return 0.5 + 0.1 * np.maximum(x[:, 0] - 1, 0) - 0.05 * x[:, 1] * x[:, 2] + 0.02 * x[:, 1]

    forecast = fit_ridge(x, known(x).astype(np.float64), **SETTINGS)
    assert forecast(fresh) == pytest.approx(known(fresh), abs=1e-4)


def test_ridge_agrees_with_scikit_learn_at_the_penalty_of_least_cross_validation() -> None:
    x, rng = normal(3_000), np.random.default_rng(1)
    target = 0.5 + 0.02 * x[:, 0] + 0.3 * rng.normal(size=3_000)
    columns = StandardScaler().fit_transform(expand_columns(torch.from_numpy(x)).double().numpy())
    values = np.linalg.eigvalsh(columns.T @ columns)
    scores, fits = [], []
    for penalty in PENALTIES * values.max():
        other = SklearnRidge(alpha=penalty).fit(columns, target)
        left = np.mean((target - other.predict(columns)) ** 2)
        scores.append(left / (1 - np.sum(values / (values + penalty)) / 3_000) ** 2)
        fits.append(other.predict(columns))
    best = int(np.argmin(scores))
    assert 0 < best < len(PENALTIES) - 1
    assert fit_ridge(x, target, **SETTINGS)(x) == pytest.approx(fits[best], abs=2e-5)


def test_ridge_shrinks_pure_noise_to_almost_nothing() -> None:
    x, rng = normal(5_000, features=10), np.random.default_rng(1)
    forecast = fit_ridge(x, rng.random(5_000), **SETTINGS)(normal(5_000, features=10, seed=2))
    assert forecast.mean() == pytest.approx(0.5, abs=0.02)
    assert forecast.std() < 0.02  # without a penalty 0.04


def test_ridge_fits_a_constant_and_a_single_input() -> None:
    x = normal(500, features=2)
    x[:, 1] = 0.7
    target = 0.5 + 0.1 * x[:, 0].astype(np.float64)
    assert fit_ridge(x, target, **SETTINGS)(x) == pytest.approx(target, abs=1e-3)
    assert fit_ridge(x[:, :1], target, **SETTINGS)(x[:, :1]) == pytest.approx(target, abs=1e-3)


def test_lightgbm_finds_what_ridge_cannot_and_is_deterministic() -> None:
    pytest.importorskip("lightgbm")
    x = normal(20_000)
    target = 0.5 + 0.2 * (np.sin(6 * x[:, 0]) > 0)
    trees, ridge = (fit(x, target, **SETTINGS)(x) for fit in (fit_lightgbm, fit_ridge))
    assert np.corrcoef(trees, target)[0, 1] > 0.95 > np.corrcoef(ridge, target)[0, 1] + 0.5
    assert np.array_equal(fit_lightgbm(x, target, **SETTINGS)(x), trees)


def test_missing_lightgbm_is_reported_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"pip install 'robust-fin\[boost\]'.*learner=ridge"):
        fit_lightgbm(normal(10), np.zeros(10), **SETTINGS)


HOLDOUT = Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False)
WALK = WalkForward(
    by="trading_date", test_blocks=3, first_test=0.5, window=None, val_fraction=0.1, embargo=0,
    lockbox=0.0, refit=False,
)  # fmt: skip
KFOLD = PurgedKFold(k=4, val_fraction=0.0, embargo=0, lockbox=0.0, refit=False)


class FittedPart(NamedTuple):
    """A scored part, and what its learner was fitted on."""

    fit_x: np.ndarray
    fit_target: np.ndarray
    scored: ScoredPart

    def equals(self, other: "FittedPart") -> bool:
        """Compare all arrays exactly."""
        names = ("x", "target", "outcome", "trading_date", "trivial")
        pairs = [(self.fit_x, other.fit_x), (self.fit_target, other.fit_target)]
        pairs += [(getattr(self.scored, name), getattr(other.scored, name)) for name in names]
        return all(np.array_equal(first, second) for first, second in pairs)


def make_span(split: Split = HOLDOUT, *, number: int = 0, embargo: int = 0) -> TrainingSpan:
    names, examples = make_examples_with_signal(6_000)
    cut = cut_folds(examples, split)
    return TrainingSpan.from_fold(examples, cut, number, names=names, embargo=embargo)


def fitted_parts(
    span: TrainingSpan, count: int, *, first: float, names: Sequence[str] | None = None
) -> list[FittedPart]:
    fitted: list[tuple[np.ndarray, np.ndarray]] = []

    def learner(x: np.ndarray, target: np.ndarray) -> Scorer:
        fitted.append((x, target))
        return lambda rows: rows[:, 0]

    scored = list(span.parts(count, first=first, learner=learner, names=names))
    return [FittedPart(*arrays, part) for arrays, part in zip(fitted, scored, strict=True)]


def test_parts_are_consecutive_and_the_learner_sees_all_rows_before() -> None:
    span = make_span()
    parts = fitted_parts(span, 4, first=0.4)
    dates = [np.unique(part.scored.trading_date) for part in parts]
    assert [part.size for part in dates] == [13, 13, 12, 12]  # 84 dates, from the 35th on
    last = np.unique(span.examples.trading_date[span.rows])[-50:]
    assert np.array_equal(np.concatenate(dates), last)
    fitted = [len(part.fit_x) for part in parts]
    scored = [len(part.scored.x) for part in parts]
    assert fitted == [fitted[0] + sum(scored[:number]) for number in range(4)]
    assert parts[0].fit_x.shape[1] == 5


def test_embargo_drops_more_fitted_rows_before_each_part() -> None:
    plain, apart = (
        [len(part.fit_x) for part in fitted_parts(make_span(embargo=embargo), 2, first=0.5)]
        for embargo in (0, 10)
    )
    assert [a - b for a, b in zip(plain, apart, strict=True)] == [10, 10]


def test_target_and_transform_are_fitted_on_the_fitted_rows() -> None:
    span = make_span()
    part = fitted_parts(span, 4, first=0.4)[0]
    outcome = span.examples.outcome[span.rows[: len(part.fit_x)]]
    target = RankTarget.fit(outcome)
    assert np.array_equal(part.fit_target, target.transform(outcome))
    assert np.array_equal(part.scored.target, target.transform(part.scored.outcome))
    assert part.scored.trivial == target.median
    quantiles = np.quantile(part.fit_x, [0.1, 0.5, 0.9], axis=0).T[0]
    assert np.abs(quantiles - [-1.28, 0, 1.28]).max() < 0.1


def test_selected_features_have_the_same_values_as_among_all() -> None:
    everything = fitted_parts(make_span(), 3, first=0.5)[0]
    selected = fitted_parts(make_span(), 3, first=0.5, names=["weak", "noise"])[0]
    assert np.array_equal(selected.scored.x, everything.scored.x[:, [3, 0]])
    assert np.array_equal(selected.fit_x, everything.fit_x[:, [3, 0]])


@pytest.mark.parametrize(("split", "number"), [(HOLDOUT, 0), (WALK, 0), (WALK, 2), (KFOLD, 1)])
def test_no_row_of_another_span_is_read(split: Split, number: int) -> None:
    before = make_span(split, number=number)
    changed = change_other_rows(before.examples, before.rows)
    assert (changed.outcome != before.examples.outcome).sum() > 500
    cut = cut_folds(changed, split)
    after = TrainingSpan.from_fold(changed, cut, number, names=before.names, embargo=0)
    pairs = [fitted_parts(span, 3, first=0.5) for span in (before, after)]
    assert len(pairs[0]) == 3
    assert all(first.equals(second) for first, second in zip(*pairs, strict=True))
    assert np.array_equal(before.x(most=500), after.x(most=500))


def test_rows_judged_by_another_fold_are_counted() -> None:
    assert make_span(HOLDOUT).judged == 0
    assert make_span(WALK, number=0).judged == 0
    later = make_span(WALK, number=1)
    assert 0 < later.judged < later.rows.size
    fold = make_span(KFOLD, number=1)
    assert fold.judged == fold.rows.size


def test_evenly_spaced_rows_are_at_most_as_many_as_asked_for() -> None:
    span = make_span()
    assert len(span.x(most=1_000)) <= 1_000
    assert np.array_equal(span.x(most=10**9), span.examples.features[span.rows])


def test_too_few_dates_raise_an_error_with_their_number() -> None:
    with pytest.raises(SplitError, match=r"100 parts after the first 0\.5 .* 84 trading dates"):
        fitted_parts(make_span(), 100, first=0.5)
