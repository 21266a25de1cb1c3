import dataclasses
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest

from robust_fin.cli.composition import conf_folder
from robust_fin.data import folds
from robust_fin.data.examples import Examples, make_examples
from robust_fin.data.splits import Holdout, Split
from robust_fin.data.targets import ForwardReturn
from robust_fin.data.transforms import FeatureTransform
from robust_fin.features.registry import FeatureSet
from robust_fin.leaks import checks
from robust_fin.leaks.checks import check_folds
from robust_fin.leaks.perturbations import Findings
from tests.bars import config, instantiate, synthetic_bars
from tests.planted_leaks import PlainHoldout, TableScaler

ROWS = 20_000
FEATURES = FeatureSet(("close_change_pct", "price_range"))
SPLITS = sorted(path.stem for path in (conf_folder() / "split").glob("*.yaml"))
TRANSFORMS = sorted(path.stem for path in (conf_folder() / "transform").glob("*.yaml"))
FOLDS = {"holdout": 1, "walk_forward": 5, "purged_kfold": 5, "cpcv": 15}
HOLDOUT = Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False)


@cache
def examples(horizon: int = 1) -> Examples:
    bars = synthetic_bars(ROWS)
    return make_examples(bars, names=FEATURES.names, target=ForwardReturn(horizon, None))


def run_check(split: Split, *, transform: str = "robust", horizon: int = 1) -> Findings:
    fit = instantiate(config(f"transform={transform}").transform)
    return check_folds(examples(horizon), features=FEATURES, transform=fit, split=split)


@pytest.mark.parametrize("choice", SPLITS)
def test_no_configured_split_leaks(choice: str) -> None:
    refit = choice == "holdout"
    words = (f"split={choice}", "split.val_fraction=0.1", f"split.refit={refit}")
    findings = run_check(instantiate(config(*words).split), horizon=9)
    assert [str(leak) for leak in findings.leaks] == []
    assert [line.cuts for line in findings.checked] == [FOLDS[choice] * (1 + refit)] * 3
    assert all(line.rows > 10_000 for line in findings.checked)


@pytest.mark.parametrize("choice", TRANSFORMS)
def test_no_configured_transform_leaks(choice: str) -> None:
    assert run_check(HOLDOUT, transform=choice).leaks == []


@pytest.mark.parametrize(("horizon", "rows"), [(1, 1), (9, 9)])
def test_unpurged_split_is_found(horizon: int, rows: int) -> None:
    split = PlainHoldout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False)
    findings = run_check(split, horizon=horizon)
    first = findings.leaks[0]
    assert first.column == "split, fold 0"
    assert "overlaps labels of val" in str(first)
    assert f"{rows} train rows overlap them" in str(first)
    assert first.reach is not None
    assert (first.reach.bars, first.reach.minutes) == (horizon, horizon)
    assert "labels of test" in str(findings.leaks[1])  # labels of val reach into test


def leaky(
    fit_transforms: Callable[..., folds.FittedFold], *, part: str
) -> Callable[..., folds.FittedFold]:
    """Return a fit that fits its transform or rank target on all labelled rows."""

    def fit(seen: Examples, rows: np.ndarray, fold: folds.Fold, **parts: object):
        fitted = fit_transforms(seen, rows, fold, **parts)
        every = fit_transforms(
            seen, rows, dataclasses.replace(fold, train=np.arange(rows.size)), **parts
        )
        return dataclasses.replace(fitted, **{part: getattr(every, part)})

    return fit


@pytest.mark.parametrize("transform", ["robust", "quantile_normal"])
def test_scaler_fitted_on_all_rows_is_found(
    monkeypatch: pytest.MonkeyPatch, transform: str
) -> None:
    monkeypatch.setattr(checks, "fit_transforms", leaky(folds.fit_transforms, part="transform"))
    (leak,) = run_check(HOLDOUT, transform=transform).leaks
    assert leak.column == "close_change_pct, transformed, fold 0"
    assert leak.reach is not None
    assert leak.reach.bars > 0.25 * ROWS  # test is a fifth of all rows, val a tenth


def test_rank_target_of_all_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "fit_transforms", leaky(folds.fit_transforms, part="target"))
    (leak,) = run_check(HOLDOUT).leaks
    assert leak.column == "rank target, fold 0"
    assert leak.reach is not None
    assert leak.reach.bars > 0.25 * ROWS


def test_transform_that_scales_by_the_given_table_is_found() -> None:
    fit = partial(FeatureTransform.fit, steps=[TableScaler.fit])
    findings = check_folds(examples(), features=FEATURES, transform=fit, split=HOLDOUT)
    (leak,) = findings.leaks
    assert leak.column == "close_change_pct, transformed, fold 0"
    assert "values of test change when later rows of test change" in str(leak)


def test_training_rows_chosen_by_values_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(seen: Examples, split: Split) -> folds.FoldSet:
        cut = folds.cut_folds(seen, split)
        (fold,) = cut.folds
        limit = 4 * np.nanstd(seen.outcome)  # of all rows, so it knows the future volatility
        calm = np.abs(seen.outcome[cut.rows[fold.train]]) < limit
        return cut._replace(folds=(dataclasses.replace(fold, train=fold.train[calm]),))

    monkeypatch.setattr(checks, "cut_folds", choose)
    (leak,) = run_check(HOLDOUT).leaks
    assert "its training rows change when the values of rows outside train change" in str(leak)
