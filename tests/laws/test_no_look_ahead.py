"""Nothing that is fitted depends on rows of a later span."""

import dataclasses
import itertools
from functools import cache

import numpy as np

from robust_fin.data.datamodule import BarDataModule, Market
from robust_fin.data.targets import ForwardReturn
from robust_fin.market.schema import bar_starts
from robust_fin.market.sources import Bars
from tests.bars import MINUTE, config, instantiate, shocked, synthetic_bars
from tests.for_every import for_every

ROWS = 20_000
TRANSFORMS = ["robust", "robust_clip", "quantile_normal"]


def market_bars() -> Bars:
    return synthetic_bars(ROWS)


def build(bars: Bars, *overrides: str) -> BarDataModule:
    settings = config("split.embargo=5", *overrides)
    features = instantiate(settings.features)
    market = Market.from_bars(bars, features=features, target=instantiate(settings.target))
    return BarDataModule(
        market,
        features=features,
        transform=instantiate(settings.transform),
        split=instantiate(settings.split),
        scale=instantiate(settings.target_scale),
        batch_size=64,
        score_batch_size=512,
        seed=0,
    )


@cache
def data(*overrides: str) -> BarDataModule:
    return build(market_bars(), *overrides)


def changed_from(span: str, *overrides: str) -> BarDataModule:
    """Build the data module after changing every bar from the first row of `span` on."""
    bars, before = market_bars(), data(*overrides)
    first = before.market.examples.time[before.fitted.span(span)[0]]
    rows = np.flatnonzero(bar_starts(bars.table) >= first)
    return build(dataclasses.replace(bars, table=shocked(bars.table, rows)), *overrides)


def fitted_arrays(module: BarDataModule) -> dict[str, np.ndarray]:
    return module.fitted.transform.arrays() | module.fitted.target.arrays()


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def assert_span_is_the_same(a: BarDataModule, b: BarDataModule, span: str) -> None:
    assert np.array_equal(a.fitted.span(span), b.fitted.span(span))
    assert np.array_equal(a.x(span).numpy(), b.x(span).numpy())
    assert np.array_equal(a.target(span), b.target(span))
    assert np.array_equal(a.outcome(span), b.outcome(span))


@for_every("transform, horizon", itertools.product(TRANSFORMS, [1, 30]))
def test_test_bars_do_not_change_train_or_val(transform: str, horizon: int) -> None:
    overrides = (f"transform={transform}", f"target.horizon={horizon}")
    before, after = data(*overrides), changed_from("test", *overrides)
    assert equal(fitted_arrays(before), fitted_arrays(after))
    assert_span_is_the_same(before, after, "train")
    assert_span_is_the_same(before, after, "val")
    assert not np.array_equal(before.x("test").numpy(), after.x("test").numpy())
    assert not np.array_equal(before.target("test"), after.target("test"))


@for_every("transform", TRANSFORMS)
def test_val_bars_do_not_change_train(transform: str) -> None:
    overrides = (f"transform={transform}",)
    before, after = data(*overrides), changed_from("val", *overrides)
    assert equal(fitted_arrays(before), fitted_arrays(after))
    assert_span_is_the_same(before, after, "train")
    assert not np.array_equal(before.x("val").numpy(), after.x("val").numpy())


@for_every("transform", TRANSFORMS)
def test_train_bars_change_the_fitted_transforms(transform: str) -> None:
    """Otherwise a transform that fits nothing would pass the tests above."""
    overrides = (f"transform={transform}",)
    assert not equal(
        fitted_arrays(data(*overrides)), fitted_arrays(changed_from("train", *overrides))
    )


def test_test_bars_do_not_change_a_refit() -> None:
    before, after = data().for_refit(), changed_from("test").for_refit()
    assert equal(fitted_arrays(before), fitted_arrays(after))
    assert_span_is_the_same(before, after, "train")


@for_every("horizon", [1, 3, 60])
def test_target_does_not_depend_on_bars_after_its_label_end(horizon: int) -> None:
    table = market_bars().table
    target = ForwardReturn(horizon, None)
    before = target.label(table, bar=MINUTE)
    for last in (100, 5000, 12_345):
        future = np.arange(last + 1, len(table))
        after = target.label(shocked(table, future), bar=MINUTE)
        known = before.label_end <= bar_starts(table)[last] + MINUTE.to_timedelta64()
        assert known.sum() > last - 2 * horizon
        np.testing.assert_array_equal(after.outcome[known], before.outcome[known])
        np.testing.assert_array_equal(after.label_end, before.label_end)
        assert not np.array_equal(after.outcome[last], before.outcome[last])


def test_labels_end_before_the_next_span_starts() -> None:
    module = data("target.horizon=30")
    examples = module.market.examples
    for earlier, later in (("train", "val"), ("val", "test")):
        ends = examples.label_end[module.fitted.span(earlier)]
        assert ends.max() <= examples.time[module.fitted.span(later)].min()
