import numpy as np
import pytest

from robust_fin.features.registry import BARS, SESSION, TRADING_DATES, Lookback
from robust_fin.leaks.perturbations import (
    FIRST,
    MIDDLE,
    ROLL,
    TRAIN,
    Leak,
    Reach,
    change_future,
    comb_masks,
    cut_points,
    drop_future,
    drop_past,
    finite_std,
    has_full_lookback,
    last_noticed,
    later_starts,
    measure_reach,
    perturb_bars,
    values_differ,
    window_around,
)
from robust_fin.market.schema import check_bars
from tests.bars import synthetic_bars, zigzag

ROWS = 20_000  # eight trading dates of ESH22, then six and a half of ESM22
NAN = np.nan


def test_perturb_bars_changes_only_the_given_rows_and_keeps_them_valid() -> None:
    bars = synthetic_bars(ROWS).table.copy()
    bars.loc[3:5, "volume"] = 0.0
    rows = np.arange(len(bars)) % 3 == 0
    after = perturb_bars(bars, rows)
    check_bars(after, origin="perturbed bars")
    for name in ("open", "high", "low", "close", "vix"):
        differ = after[name].to_numpy() != bars[name].to_numpy()
        assert np.array_equal(differ, rows)
    assert after["volume"].to_numpy()[3:6].tolist() == [0.0, 0.0, 0.0]
    for name in ("time", "contract", "trading_date", "trading_day"):
        assert after[name].equals(bars[name])
    assert np.array_equal(perturb_bars(bars, rows)["close"], after["close"])


def test_future_and_past_are_dropped_or_changed_at_a_row() -> None:
    bars = zigzag(6)
    assert drop_future(bars, 4).index.tolist() == [0, 1, 2, 3]
    assert drop_past(bars, 4).index.tolist() == [0, 1]
    assert drop_past(bars, 4)["time"].tolist() == bars["time"].tolist()[4:]
    changed = change_future(bars, 4)["close"].to_numpy() != bars["close"].to_numpy()
    assert changed.tolist() == [False] * 4 + [True] * 2


def test_later_starts_are_the_first_rows_of_later_times() -> None:
    bars = zigzag(6)
    bars["time"] = bars["time"].iloc[[0, 1, 1, 2, 2, 3]].to_numpy()
    assert later_starts(bars, 1).tolist() == [3, 5]
    assert later_starts(bars, 5).tolist() == []


LOOKBACKS = (
    Lookback(0, BARS), Lookback(60, BARS), Lookback(0, SESSION), Lookback(3, TRADING_DATES)
)  # fmt: skip


@pytest.mark.parametrize("lookback", LOOKBACKS, ids=str)
def test_comb_compares_no_row_with_a_changed_bar_in_its_lookback(lookback: Lookback) -> None:
    bars = synthetic_bars(ROWS).table
    teeth, known = comb_masks(bars, lookback, seed=0)
    assert not (teeth & known).any()
    assert known.mean() > 0.15
    day, code = bars["trading_day"].to_numpy(), bars["contract"].cat.codes.to_numpy()
    for row in np.flatnonzero(known)[::37]:
        if lookback.unit == BARS:
            contract = np.flatnonzero(code[: row + 1] == code[row])[-1 - lookback.count :]
            assert not teeth[contract].any()
        else:
            within = day[: row + 1] >= day[row] - lookback.count
            assert not teeth[: row + 1][within].any()
    cuts = np.count_nonzero(known[:-1] & teeth[1:])
    assert cuts >= (3 if lookback.unit == TRADING_DATES else 10)


def test_rows_have_a_full_lookback_even_if_the_table_starts_mid_session() -> None:
    bars = synthetic_bars(ROWS).table.iloc[700:].reset_index(drop=True)
    day = bars["trading_day"].to_numpy()
    assert has_full_lookback(bars, Lookback(5, BARS))[:7].tolist() == [False] * 5 + [True] * 2
    session = np.flatnonzero(has_full_lookback(bars, Lookback(0, SESSION)))[0]
    assert session == np.argmax(day > day[0])
    later = np.flatnonzero(has_full_lookback(bars, Lookback(2, TRADING_DATES)))[0]
    assert day[later] == day[0] + 3


def test_window_holds_the_lookbacks_and_two_dates_on_either_side() -> None:
    bars = synthetic_bars(ROWS).table
    day = bars["trading_day"].to_numpy()
    lookbacks = [Lookback(1, TRADING_DATES), Lookback(9, BARS)]
    first, stop = window_around(bars, 9000, lookbacks=lookbacks)
    assert (day[first], day[first - 1]) == (day[9000] - 3, day[9000] - 4)
    assert (day[stop - 1], day[stop]) == (day[9000] + 3, day[9000] + 4)
    first, stop = window_around(bars, 9000, lookbacks=[Lookback(4000, BARS)])
    assert (first, stop) == (1000, 17_001)  # two contracts share the bars


def test_cut_points_are_of_every_kind_and_without_duplicates() -> None:
    bars = synthetic_bars(ROWS).table
    end = bars["time"].dt.tz_localize(None).to_numpy()[5000]
    cuts = cut_points(bars, count=3, seed=0, ends=[end])
    assert {cut.kind for cut in cuts} == {MIDDLE, ROLL, FIRST, TRAIN}
    last = [cut.last for cut in cuts]
    assert last == sorted(set(last))
    assert 4999 in last  # the last bar that starts before the label ends
    (roll,) = np.flatnonzero(np.diff(bars["contract"].cat.codes)) + 1
    assert {roll - 1, roll} < set(last)


def test_values_differ_beyond_rounding_or_by_being_nan() -> None:
    before = np.array([1.0, 1.0, NAN, NAN, 2.0, np.inf, 0.0])
    after = np.array([1.0 + 1e-12, 1.001, NAN, 3.0, NAN, np.inf, 1e-6])
    differ = values_differ(before, after, std=0.0)
    assert np.flatnonzero(differ).tolist() == [1, 3, 4, 6]
    assert values_differ(before, after, std=20.0)[6] is np.False_


def test_finite_std_ignores_nan_and_infinity() -> None:
    assert finite_std(np.array([NAN, 1.0, 3.0, np.inf])) == 1.0
    assert finite_std(np.array([NAN])) == 0.0


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_last_noticed_is_right_and_needs_few_calls(size: int) -> None:
    for last in {0, size // 3, size - 1}:
        calls: list[int] = []

        def notices(start: int, *, last: int = last, calls: list[int] = calls) -> bool:
            calls.append(start)
            return start <= last

        assert last_noticed(notices, size) == last
        assert len(calls) <= 2 * size.bit_length() + 1
        assert max(calls) < size
    assert last_noticed(lambda _: False, size) is None
    assert last_noticed(lambda _: True, 0) is None


@pytest.mark.parametrize("ahead", [1, 2, 7])
@pytest.mark.parametrize("change", [change_future, drop_future])
def test_reach_of_a_shifted_value_is_the_shift(ahead: int, change) -> None:
    bars = zigzag(30)
    reach = measure_reach(bars, 10, lambda t: t["close"].shift(-ahead).to_numpy(), change, std=0.0)
    assert reach == Reach(ahead, float(ahead), to_end=False)
    assert measure_reach(bars, 10, lambda t: t["close"].to_numpy(), change, std=0.0) is None


def test_reach_counts_minutes_without_a_bar() -> None:
    bars = zigzag(30).drop(index=[12, 13]).reset_index(drop=True)
    reach = measure_reach(
        bars, 11, lambda t: t["close"].shift(-1).to_numpy(), change_future, std=0.0
    )
    assert str(reach) == "1 bar (3 minutes) ahead"
    to_end = Reach(5000, 6000.0, to_end=True)
    assert str(to_end) == "5,000 bars (6,000 minutes) ahead, to the end of the bars"


def test_leak_is_one_message() -> None:
    leak = Leak("alpha", "it sees 1 bar (1 minute) ahead", "Do not", Reach(1, 1.0, to_end=False))
    assert str(leak) == "alpha leaks: it sees 1 bar (1 minute) ahead. Do not"
