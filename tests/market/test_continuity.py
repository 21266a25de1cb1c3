"""Bar length, tick, jumps of scale, silent contracts and holes, with answers known by hand."""

import numpy as np
import pandas as pd
import pytest

from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.intake.continuity import (
    NO_TICK,
    Grouped,
    bar_length,
    format_length,
    holes,
    scale_jumps,
    silences,
    tick_size,
)

MINUTE = pd.Timedelta("1min")
MINUTE_NS = 60 * 1_000_000_000
DAY_NS = 86_400 * 1_000_000_000


def minutes(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64) * MINUTE_NS


def one_contract(start: np.ndarray) -> Grouped:
    return Grouped.by_contract(start, np.zeros(start.size, dtype=np.int64))


def test_bar_length_is_the_step_that_all_steps_are_multiples_of() -> None:
    random = np.random.default_rng(0)
    kept = np.flatnonzero(random.random(600) < 0.3)  # most bars are absent
    assert bar_length(one_contract(minutes(*(5 * kept)))) == pd.Timedelta("5min")
    assert bar_length(one_contract(minutes(*kept))) == MINUTE


def test_bar_length_ignores_one_late_stamp_and_the_night() -> None:
    day = np.arange(0, 390, 30)
    start = minutes(*np.concatenate([day + 1440 * number + 7 * number for number in range(40)]))
    start[3] += 1_000_000_000
    assert bar_length(one_contract(start)) == pd.Timedelta("30min")


def test_bar_length_is_unknown_with_fewer_than_20_steps() -> None:
    assert bar_length(one_contract(minutes(*range(20)))) is None
    assert bar_length(one_contract(minutes(*range(21)))) == MINUTE


def test_bar_length_counts_steps_within_contracts() -> None:
    start = np.sort(np.concatenate([minutes(*range(0, 300, 5)), minutes(*range(2, 302, 5))]))
    contract = (start // MINUTE_NS % 5 == 2).astype(np.int64)
    assert bar_length(Grouped.by_contract(start, contract)) == pd.Timedelta("5min")


@pytest.mark.parametrize("tick", [0.25, 0.1, 0.01, 1 / 64, 0.00005, 250_000_000.0])
def test_tick_is_the_coarsest_grid_of_the_prices(tick: float) -> None:
    random = np.random.default_rng(0)
    assert tick_size(tick * (20_000 + random.integers(0, 2_000, 5_000))) == pytest.approx(tick)


def test_tick_is_unknown_with_few_prices_and_none_off_every_grid() -> None:
    random = np.random.default_rng(0)
    assert tick_size(np.full(1000, 100.0)) is None
    assert tick_size(100 + random.random(5_000)) == NO_TICK


def test_scale_jump_is_found_and_a_single_bad_tick_is_not() -> None:
    start, close = minutes(*range(200)), np.full(200, 50.0)
    close[40] = 500.0
    assert scale_jumps(close, one_contract(start), bar=MINUTE, across=True) == []
    close[120:] = 5_000.0
    ((row, factor),) = scale_jumps(close, one_contract(start), bar=MINUTE, across=True)
    assert (row, factor) == (120, pytest.approx(100.0))


def test_scale_of_contracts_is_compared_only_across_one_product() -> None:
    start, contract = minutes(*range(100)), np.repeat([0, 1], 50)
    close = np.repeat([50.0, 500.0], 50)
    grouped = Grouped.by_contract(start, contract)
    assert scale_jumps(close, grouped, bar=MINUTE, across=False) == []
    ((row, factor),) = scale_jumps(close, grouped, bar=MINUTE, across=True)
    assert (row, factor) == (50, pytest.approx(10.0))


def test_contract_silent_for_ten_years_is_found() -> None:
    days = np.array([*range(90), *range(3652, 3742)], dtype=np.int64)
    (found,) = silences(one_contract(days * DAY_NS), np.zeros(days.size, dtype=np.int64))
    assert found.contract == 0
    assert (found.after - found.before).days == 3652 - 89


def test_both_silences_of_three_contracts_with_one_code_are_found() -> None:
    days = np.array([*range(90), *range(3652, 3742), *range(7305, 7395)], dtype=np.int64)
    found = silences(one_contract(days * DAY_NS), np.zeros(days.size, dtype=np.int64))
    assert [(silence.after - silence.before).days for silence in found] == [3652 - 89, 7305 - 3741]


def test_silence_shorter_than_a_year_or_than_the_life_is_none() -> None:
    for days in ([*range(9), *range(300, 309)], [*range(500), *range(900, 1000)]):
        start = np.array(days, dtype=np.int64) * DAY_NS
        assert silences(one_contract(start), np.zeros(start.size, dtype=np.int64)) == []


def test_hole_has_its_length_and_the_return_across_it() -> None:
    calendar = TradingCalendar.named("CME_Equity", first="2024-01-01", last="2024-12-31")
    dates = ["2024-03-04 15:00", "2024-03-05 15:00", "2024-03-08 15:00"]  # Wed and Thu are absent
    start = pd.DatetimeIndex(dates).as_unit("ns").to_numpy().view(np.int64)
    (hole,) = holes(calendar, start, np.array([100.0, 100.0, 103.0]))
    assert hole.sessions == 2
    assert hole.change == pytest.approx(0.03)
    assert str(hole) == ("2 trading dates after 2024-03-05 15:00 UTC (return across +3.00 %)")


@pytest.mark.parametrize("text", ["1min", "5min", "90s", "1h", "4h", "1D"])
def test_length_is_formatted_as_source_bar_writes_it(text: str) -> None:
    assert format_length(pd.Timedelta(text)) == text
