from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from robust_fin.data.cache import NO_CACHE, Cache
from robust_fin.data.folds import SPANS, FittedFold, Market, cut_folds, fit_fold, prepare_fold
from robust_fin.data.splits import Split
from robust_fin.data.targets import ForwardReturn
from robust_fin.data.transforms import FeatureTransform, RobustScaler
from robust_fin.errors import SplitError
from robust_fin.features.registry import FeatureSet
from tests.bars import config, instantiate, synthetic_bars

FEATURES = FeatureSet.of(["close_change_pct", "price_range"])
SCALED = partial(FeatureTransform.fit, steps=[RobustScaler.fit])
BARS = 16_000


@pytest.fixture(scope="module")
def market() -> Market:
    made = Market.from_bars(synthetic_bars(BARS), features=FEATURES, target=ForwardReturn(1, None))
    return Market(made.bars, made.examples, {"bars": "synthetic"})


def split_of(choice: str, *overrides: str) -> Split:
    return instantiate(config(f"split={choice}", *overrides).split)


def fitted(market: Market, split: Split, number: int, cache: Cache = NO_CACHE) -> FittedFold:
    return prepare_fold(
        market, features=FEATURES, transform=SCALED, split=split, cache=cache, number=number
    )


@pytest.mark.parametrize("choice", ["walk_forward", "purged_kfold", "cpcv"])
def test_each_fold_is_fitted_on_its_own_train_rows(market: Market, choice: str) -> None:
    split, examples = split_of(choice, "split.val_fraction=0.05"), market.examples
    cut = cut_folds(examples, split)
    for number in (0, 1, len(cut.folds) - 1):
        fold = fitted(market, split, number)
        for span in SPANS:
            rows = cut.rows[getattr(cut.folds[number], span)]
            assert np.array_equal(fold.span(span), rows)
            assert np.isfinite(examples.outcome[rows]).all()
        train = examples.features[fold.span("train")]
        low, median, high = np.percentile(train, [25, 50, 75], axis=0)
        expected = (examples.features[fold.span("test")] - median) / (high - low)
        assert np.array_equal(fold.x(examples, "test"), expected.astype(np.float32))
        ranks = rankdata(examples.outcome[fold.span("train")]) - 1
        ranks = ranks / (ranks.size - 1)
        np.testing.assert_allclose(fold.rank(examples, "train"), ranks, rtol=1e-6)


def test_every_fold_accounts_for_every_labelled_row(market: Market) -> None:
    labelled = int(np.isfinite(market.examples.outcome).sum())
    overrides = ("split.lockbox=0.1", "split.val_fraction=0.1", "split.embargo=60")
    for choice in ("walk_forward", "purged_kfold", "cpcv"):
        for fold in cut_folds(market.examples, split_of(choice, *overrides)).folds:
            spans = sum(getattr(fold, span).size for span in SPANS)
            assert spans + sum(fold.purged.values()) == labelled
            assert fold.purged["lockbox: never looked at"] == pytest.approx(0.1 * labelled, abs=1)


def test_test_block_of_a_contract_contains_only_that_contract(market: Market) -> None:
    split = split_of("walk_forward", "split.by=contract", "split.test_blocks=null")
    cut, contract = cut_folds(market.examples, split), market.examples.contract
    assert len(cut.folds) == 1  # these bars roll once
    assert set(contract[cut.rows[cut.folds[0].train]]) == {"ESH22"}
    assert set(contract[cut.rows[cut.folds[0].test]]) == {"ESM22"}


def test_missing_fold_raises_with_the_range_of_folds(market: Market) -> None:
    with pytest.raises(SplitError, match=r"fold 5 does not exist: the split has folds 0\.\.4"):
        fitted(market, split_of("purged_kfold"), 5)
    with pytest.raises(SplitError, match="fold -1 does not exist"):
        fitted(market, split_of("holdout"), -1)


def test_each_fold_has_its_own_cache_key(market: Market, tmp_path: Path) -> None:
    cache, split = Cache(str(tmp_path), 1.0), split_of("cpcv", "split.groups=4")
    cold = [fitted(market, split, number, cache) for number in (0, 1)]
    assert len(list(tmp_path.glob("*/manifest.json"))) == 2
    warm = [fitted(market, split, number, cache) for number in (0, 1)]
    assert len(list(tmp_path.glob("*/manifest.json"))) == 2
    for number, (first, second) in enumerate(zip(cold, warm, strict=True)):
        plain = fit_fold(
            market.examples, features=FEATURES, transform=SCALED, split=split, number=number
        )
        assert first.fold.groups == second.fold.groups == plain.fold.groups != ()
        assert first.fold.purged == second.fold.purged == plain.fold.purged
        for span in SPANS:
            assert np.array_equal(second.span(span), plain.span(span))
            assert np.array_equal(second.x(market.examples, span), plain.x(market.examples, span))
    assert not np.array_equal(warm[0].span("test"), warm[1].span("test"))
