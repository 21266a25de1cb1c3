from dataclasses import replace

import numpy as np
import pytest

from robust_fin.data.examples import Examples, RowLedger, first_reasons, make_examples
from robust_fin.data.targets import ForwardReturn
from robust_fin.errors import SourceError
from tests.bars import as_bars, close_bars, synthetic_bars

# five bars of H, then three of M; the first bar of M has the time of the last bar of H
BARS = """
ESH24 2024-03-11T08:30 100
ESH24 2024-03-11T08:31 110
ESH24 2024-03-11T08:32 121
ESH24 2024-03-11T08:40 110
ESH24 2024-03-11T08:41 100
ESM24 2024-03-11T08:41 200
ESM24 2024-03-11T08:42 220
ESM24 2024-03-11T08:43 242
"""


def examples(*names: str, horizon: int = 1, max_gap: float | None = None) -> Examples:
    target = ForwardReturn(horizon, max_gap)
    return make_examples(as_bars(close_bars(BARS)), names=names, target=target)


def test_rows_with_all_features_are_kept_and_the_others_counted() -> None:
    got = examples("close_change_pct")
    assert got.rows_in == 8
    assert got.dropped == {"close_change_pct undefined": 2}
    assert got.unlabelled == {"no bar at the horizon in the contract": 2}
    np.testing.assert_allclose(
        got.features[:, 0], [0.1, 0.1, 110 / 121 - 1, 100 / 110 - 1, 0.1, 0.1]
    )
    expected = [0.1, 110 / 121 - 1, 100 / 110 - 1, np.nan, 0.1, np.nan]
    np.testing.assert_allclose(got.outcome, expected)
    assert got.contract.tolist() == ["ESH24"] * 4 + ["ESM24"] * 2


def test_dropped_row_counts_under_its_first_undefined_feature() -> None:
    got = examples("close_change_pct", "price_mom_3bar")
    dropped = {"close_change_pct undefined": 2, "price_mom_3bar undefined": 4}
    assert got.dropped == dropped
    assert got.features.shape == (2, 2)


def test_unlabelled_rows_are_counted_by_reason() -> None:
    got = examples("price_range", max_gap=5)
    assert got.dropped == {}
    assert got.unlabelled == {
        "label jumps a break longer than target.max_gap": 1,
        "no bar at the horizon in the contract": 2,
    }
    assert np.flatnonzero(np.isnat(got.label_end)).tolist() == [2, 4, 7]


def test_bars_without_a_label_are_kept_for_scoring() -> None:
    got = examples("price_range", horizon=2)
    assert got.time.size == 8
    assert np.isnan(got.outcome).tolist() == [False] * 3 + [True] * 2 + [False] + [True] * 2


def test_last_return_does_not_depend_on_the_features() -> None:
    without, with_it = examples("price_range"), examples("close_change_pct")
    assert without.features.shape == (8, 1)
    assert np.isnan(without.last_return).tolist() == [True] + [False] * 4 + [True] + [False] * 2
    assert with_it.last_return.tolist() == with_it.features[:, 0].tolist()


def test_rows_dropped_earlier_are_still_counted() -> None:
    bars = replace(as_bars(close_bars(BARS)), rows_in=11, dropped={"beyond source.fraction": 3})
    got = make_examples(bars, names=["close_change_pct"], target=ForwardReturn(1, None))
    assert got.dropped == {"beyond source.fraction": 3, "close_change_pct undefined": 2}
    assert sum(got.dropped.values()) + got.time.size == got.rows_in == 11


def test_too_short_history_raises_with_its_size() -> None:
    message = (
        r"hand-made bars: no row has all features\. It holds 8 bars on 1 trading dates, and "
        r"price_mom_3d needs 3 trading dates; vwap needs since the session's start"
    )
    with pytest.raises(SourceError, match=message):
        examples("price_mom_3d", "vwap")


def test_kept_features_are_finite_on_a_longer_table() -> None:
    bars = synthetic_bars(20_000)
    got = make_examples(
        bars, names=["vwap", "price_mom_5d", "price_mom_5bar"], target=ForwardReturn(3, None)
    )
    assert np.isfinite(got.features).all()
    assert sum(got.dropped.values()) + got.time.size == 20_000
    assert sum(got.unlabelled.values()) == np.isnan(got.outcome).sum() == 6


def mask(*rows: int) -> np.ndarray:
    return np.isin(np.arange(6), rows)


def test_row_counts_under_its_first_reason() -> None:
    reasons = {"a": mask(0, 1), "b": mask(1, 2), "c": mask(0, 1, 2), "d": mask(2, 5)}
    assert first_reasons(reasons) == {"a": 2, "b": 1, "d": 1}


def test_reasons_without_rows_are_omitted() -> None:
    assert first_reasons({}) == {}
    assert first_reasons({"a": mask(), "b": mask(3)}) == {"b": 1}


def test_row_ledger_as_dict() -> None:
    ledger = RowLedger(10, {"a": 2}, {"train": 5, "val": 1, "test": 2}, {"late bars": 3.0})
    assert ledger.as_dict() == {
        "rows_in": 10,
        "dropped": {"a": 2},
        "spans": {"train": 5, "val": 1, "test": 2},
        "reports": {"late bars": 3.0},
    }


def test_row_ledger_that_does_not_add_up_raises() -> None:
    with pytest.raises(AssertionError, match="9 rows accounted for, 10 came in"):
        RowLedger(10, {"a": 2}, {"train": 5, "val": 0, "test": 2}, {})
