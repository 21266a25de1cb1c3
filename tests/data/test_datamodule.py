from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from robust_fin.data.batches import Batch, ScoredBatch
from robust_fin.data.datamodule import BarDataModule, Market
from robust_fin.data.splits import Holdout
from robust_fin.data.targets import ForwardReturn, RankScale
from robust_fin.data.transforms import FeatureTransform, RobustScaler
from robust_fin.errors import ConfigError, SplitError
from robust_fin.features.registry import FeatureSet
from tests.bars import as_bars, close_bars, synthetic_bars

FEATURES = FeatureSet.of(["close_change_pct", "price_range", "price_mom_3d"])
SCALED = partial(FeatureTransform.fit, steps=[RobustScaler.fit])
ROWS = 12_000


def module(*, split: Holdout | None = None, **settings: int) -> BarDataModule:
    return BarDataModule(
        Market.from_bars(synthetic_bars(ROWS), features=FEATURES, target=ForwardReturn(1, None)),
        features=FEATURES,
        transform=SCALED,
        split=split or Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=True),
        scale=RankScale(start=0.5),
        **{"batch_size": 64, "score_batch_size": 500, "seed": 3} | settings,
    )


@pytest.fixture(scope="module")
def data() -> BarDataModule:
    return module()


def test_transforms_are_fitted_on_train_only(data: BarDataModule) -> None:
    examples, train = data.market.examples, data.fitted.span("train")
    low, median, high = np.percentile(examples.features[train], [25, 50, 75], axis=0)
    expected = ((examples.features[train] - median) / (high - low)).astype(np.float32)
    assert np.array_equal(data.x("train").numpy(), expected)
    ranks = (rankdata(examples.outcome[train]) - 1) / (train.size - 1)
    np.testing.assert_allclose(data.target("train"), ranks, rtol=1e-13)
    val = (examples.features[data.fitted.span("val")] - median) / (high - low)
    assert np.array_equal(data.x("val").numpy(), val.astype(np.float32))


def test_spans_are_consecutive_and_contain_only_labelled_rows(data: BarDataModule) -> None:
    spans = [data.fitted.span(name) for name in ("train", "val", "test")]
    assert spans[0].max() < spans[1].min() < spans[1].max() < spans[2].min()
    assert all(np.isfinite(data.outcome(name)).all() for name in ("train", "val", "test"))
    labelled = np.isfinite(data.market.examples.outcome).sum()
    assert spans[2].size == round(0.2 * labelled)


def test_refit_trains_on_train_and_val_and_keeps_test(data: BarDataModule) -> None:
    again = data.for_refit()
    assert not again.has_val()
    assert np.array_equal(again.fitted.span("test"), data.fitted.span("test"))
    kept = np.concatenate([data.fitted.span("train"), data.fitted.span("val")])
    assert np.isin(kept, again.fitted.span("train")).all()
    assert again.fitted.target.rows == again.fitted.span("train").size
    assert not np.array_equal(again.x("test").numpy(), data.x("test").numpy())
    assert (again.batch_size, again.score_batch_size, again.seed) == (64, 500, 3)


def test_batches_are_named_tuples_and_val_keeps_its_last_short_batch(data: BarDataModule) -> None:
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, Batch)
    assert [part.dtype for part in batch] == [torch.float32] * 2
    assert batch.x.shape == (64, 3)
    parts = list(data.val_dataloader())
    rows = data.fitted.span("val").size
    assert all(isinstance(part, ScoredBatch) for part in parts)
    assert [len(part.target) for part in parts] == [500, rows - 500]
    np.testing.assert_array_equal(
        torch.cat([part.outcome for part in parts]).numpy(), data.outcome("val").astype(np.float32)
    )
    np.testing.assert_allclose(torch.cat([part.target for part in parts]), data.target("val"), 1e-6)


def test_epoch_has_steps_per_epoch_batches(data: BarDataModule) -> None:
    data.setup("fit")
    assert len(list(data.train_dataloader())) == data.steps_per_epoch(1)
    assert data.steps_per_epoch(2) == data.fitted.span("train").size // 128


@pytest.mark.parametrize(
    "split",
    [
        Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False),
        Holdout(val_fraction=0.0, test_fraction=0.3, embargo=25, refit=False),
    ],
)
def test_row_ledger_accounts_for_every_row(split: Holdout) -> None:
    ledger = module(split=split).row_ledger()
    assert ledger.rows_in == ROWS
    assert sum(ledger.spans.values()) + sum(ledger.dropped.values()) == ROWS
    # one label is lost at the roll at 00:01 on 2022-03-14, and one at the end of the table
    assert ledger.dropped["no bar at the horizon in the contract"] == 2
    lost = 1 if split.val_fraction == 0 else 2
    assert ledger.dropped["purged: label reaches into the next span"] == lost
    assert ledger.dropped.get("embargo before the next span", 0) == split.embargo


def test_fewer_training_rows_than_batch_size_raise() -> None:
    with pytest.raises(SplitError, match=r"train has \d+ rows, fewer than batch_size=9999; lower"):
        module(batch_size=9999)


@pytest.mark.parametrize("setting", ["batch_size", "score_batch_size"])
def test_batch_size_below_1_raises(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"^{setting}=0 must be >= 1"):
        module(**{setting: 0})


def test_bars_without_labels_raise() -> None:
    features, target = FeatureSet.of(["price_range"]), ForwardReturn(1, None)
    bars = as_bars(close_bars("ESH24 2024-03-11T08:30 100\nESM24 2024-03-11T08:31 200"))
    with pytest.raises(SplitError, match="none of 2 rows has a label"):
        BarDataModule(
            Market.from_bars(bars, features=features, target=target),
            features=features,
            transform=SCALED,
            split=Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False),
            scale=RankScale(start=0.5),
            batch_size=1,
            score_batch_size=1,
            seed=0,
        )
