import numpy as np
import pytest

from robust_fin.features.registry import BARS, SESSION, TRADING_DATES, Lookback
from robust_fin.leaks.perturbations import (
    around,
    comb,
    future_changed,
    future_missing,
    later_stamps,
    past_lookback,
    past_missing,
    shocked,
)
from robust_fin.market.schema import check_bars
from tests.bars import synthetic_bars, zigzag


def test_shocked_bars_are_valid_others_and_the_rest_is_as_it_was() -> None:
    bars = synthetic_bars(20_000).table.copy()
    bars.loc[3:5, "volume"] = 0.0
    rows = np.arange(len(bars)) % 3 == 0
    after = shocked(bars, rows)
    check_bars(after, origin="shocked bars")
    for name in ("open", "high", "low", "close", "vix"):
        differ = after[name].to_numpy() != bars[name].to_numpy()
        assert np.array_equal(differ, rows)
    assert after["volume"].to_numpy()[3:6].tolist() == [0.0, 0.0, 0.0]
    for name in ("time", "contract", "trading_date", "trading_day"):
        assert after[name].equals(bars[name])
    assert np.array_equal(shocked(bars, rows)["close"], after["close"])


def test_a_future_or_past_that_is_missing_or_changed() -> None:
    bars = zigzag(6)
    assert future_missing(bars, 4).index.tolist() == [0, 1, 2, 3]
    assert past_missing(bars, 4).index.tolist() == [0, 1]
    assert past_missing(bars, 4)["time"].tolist() == bars["time"].tolist()[4:]
    changed = future_changed(bars, 4)["close"].to_numpy() != bars["close"].to_numpy()
    assert changed.tolist() == [False] * 4 + [True] * 2


def test_later_stamps_are_first_rows_of_later_times() -> None:
    bars = zigzag(6)
    bars["time"] = bars["time"].iloc[[0, 1, 1, 2, 2, 3]].to_numpy()
    assert later_stamps(bars, 1).tolist() == [3, 5]
    assert later_stamps(bars, 5).tolist() == []


UNITS = [Lookback(0, BARS), Lookback(60, BARS), Lookback(0, SESSION), Lookback(3, TRADING_DATES)]


@pytest.mark.parametrize("lookback", UNITS, ids=str)
def test_no_tooth_of_a_comb_lies_within_the_lookback_of_a_row_compared(lookback) -> None:
    bars = synthetic_bars(20_000).table
    teeth, known = comb(bars, lookback, seed=0)
    assert not (teeth & known).any()
    assert known.mean() > 0.15
    day, code = bars["trading_day"].to_numpy(), bars["contract"].cat.codes.to_numpy()
    for row in np.flatnonzero(known)[::37]:
        if lookback.unit == BARS:
            own = np.flatnonzero(code[: row + 1] == code[row])[-1 - lookback.count :]
            assert not teeth[own].any()
        else:
            within = day[: row + 1] >= day[row] - lookback.count
            assert not teeth[: row + 1][within].any()
    cuts = np.count_nonzero(known[:-1] & teeth[1:])
    assert cuts >= (3 if lookback.unit == TRADING_DATES else 10)


def test_rows_past_their_lookback_have_it_in_the_table() -> None:
    bars = synthetic_bars(20_000).table.iloc[700:].reset_index(drop=True)  # within a session
    day = bars["trading_day"].to_numpy()
    assert past_lookback(bars, Lookback(5, BARS))[:7].tolist() == [False] * 5 + [True] * 2
    assert np.flatnonzero(past_lookback(bars, Lookback(0, SESSION)))[0] == np.argmax(day > day[0])
    later = np.flatnonzero(past_lookback(bars, Lookback(2, TRADING_DATES)))[0]
    assert day[later] == day[0] + 3


def test_a_window_holds_the_lookbacks_and_two_dates_on_either_side() -> None:
    bars = synthetic_bars(20_000).table
    day = bars["trading_day"].to_numpy()
    first, stop = around(bars, 9000, lookbacks=[Lookback(1, TRADING_DATES), Lookback(9, BARS)])
    assert day[first] == day[9000] - 3
    assert day[first - 1] == day[9000] - 4
    assert day[stop - 1] == day[9000] + 3
    assert day[stop] == day[9000] + 4
    first, stop = around(bars, 9000, lookbacks=[Lookback(4000, BARS)])
    assert (first, stop) == (1000, 17_001)  # two contracts share the bars
