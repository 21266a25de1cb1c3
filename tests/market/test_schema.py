from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from robust_fin.errors import SchemaError
from robust_fin.market.schema import bar_starts, check_bars

MakeBars = Callable[..., pd.DataFrame]


@pytest.fixture
def bars(make_bars: MakeBars) -> pd.DataFrame:
    """Eight bars of one contract from 2024-03-04 15:00 UTC."""
    return make_bars()


def refusal(bars: pd.DataFrame) -> str:
    with pytest.raises(SchemaError) as caught:
        check_bars(bars, origin="es.csv")
    return str(caught.value)


def test_a_valid_table_passes(bars: pd.DataFrame) -> None:
    check_bars(bars, origin="es.csv")
    check_bars(bars.assign(vix=[15.2] * 7 + [np.nan]), origin="es.csv")
    check_bars(bars.assign(volume=0.0), origin="es.csv")


def test_open_and_close_may_equal_high_and_low(bars: pd.DataFrame) -> None:
    flat = bars.assign(open=5000.0, high=5000.0, low=5000.0, close=5000.0)
    check_bars(flat, origin="es.csv")


@pytest.mark.parametrize("name", ["open", "high", "low", "close"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -5000.0])
def test_prices_are_finite_and_above_zero(bars: pd.DataFrame, name: str, value: float) -> None:
    bars.loc[[3, 6], name] = value
    message = refusal(bars)
    assert f"es.csv: {name} must be a finite number above 0" in message
    assert "First at row 3" in message
    assert "time=2024-03-04 15:03:00+00:00" in message
    assert f"{name}={value}" in message
    assert "contract=ESH24" in message
    assert "2 of 8 rows break this rule" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_volume_is_finite_and_not_negative(bars: pd.DataFrame, value: float) -> None:
    bars.loc[5, "volume"] = value
    message = refusal(bars)
    assert "volume must be a finite number of at least 0. First at row 5" in message
    assert f"volume={value}" in message
    assert "1 of 8 rows" in message


@pytest.mark.parametrize("value", [np.inf, 0.0, -3.0])
def test_vix_is_above_zero_or_missing(bars: pd.DataFrame, value: float) -> None:
    vix = np.full(8, 15.0)
    vix[2:5] = value
    message = refusal(bars.assign(vix=vix))
    assert "vix must be above 0 and finite, or missing. First at row 2" in message
    assert f"vix={value}" in message
    assert "3 of 8 rows" in message


def test_high_is_not_below_low(bars: pd.DataFrame) -> None:
    bars.loc[4, ["high", "low"]] = [4990.0, 5010.0]
    message = refusal(bars)
    assert "high must not be below low. First at row 4" in message
    assert "high=4990.0, low=5010.0" in message
    assert "1 of 8 rows" in message


@pytest.mark.parametrize("name", ["open", "close"])
@pytest.mark.parametrize("value", [4000.0, 6000.0])
def test_open_and_close_lie_between_low_and_high(
    bars: pd.DataFrame, name: str, value: float
) -> None:
    bars.loc[7, name] = value
    message = refusal(bars)
    assert f"{name} must lie between low and high. First at row 7" in message
    assert f"{name}={value}" in message


def test_repeated_times_in_a_contract_raise(bars: pd.DataFrame) -> None:
    bars.loc[3, "time"] = bars.loc[2, "time"]
    message = refusal(bars)
    assert "a contract must not have the same time twice. First at row 3" in message
    assert "time=2024-03-04 15:02:00+00:00" in message
    assert "1 of 8 rows" in message


def test_times_increase_within_a_contract(bars: pd.DataFrame) -> None:
    message = refusal(bars.iloc[[0, 1, 4, 3, 2, 5, 6, 7]])
    assert "times must increase within a contract. First at row 3" in message
    assert "time=2024-03-04 15:03:00+00:00" in message
    assert "2 of 8 rows" in message


def test_repeated_times_far_apart_raise(bars: pd.DataFrame) -> None:
    message = refusal(pd.concat([bars, bars.iloc[:3]], ignore_index=True))
    assert "times must increase within a contract. First at row 8" in message
    assert "1 of 11 rows" in message


def test_contracts_may_overlap_and_interleave(bars: pd.DataFrame) -> None:
    later = bars.assign(contract="ESM24")
    check_bars(pd.concat([bars, later], ignore_index=True), origin="es.csv")
    mixed = pd.concat([bars, later]).sort_values("time", kind="stable", ignore_index=True)
    check_bars(mixed, origin="es.csv")
    late = mixed.copy()
    late.loc[9, "time"] = late.loc[5, "time"]  # row 9 is of ESM24, and so is row 5
    message = refusal(late)
    assert "times must increase within a contract. First at row 9" in message
    assert "contract=ESM24" in message


@pytest.mark.parametrize("name", ["time", "contract"])
def test_time_and_contract_are_present(bars: pd.DataFrame, name: str) -> None:
    bars.loc[1, name] = None
    assert f"{name} must be present. First at row 1" in refusal(bars)


def test_missing_columns_and_empty_tables_raise(bars: pd.DataFrame) -> None:
    message = refusal(bars.drop(columns=["close", "contract"]))
    assert "es.csv has no column close, contract" in message
    assert "es.csv has a header but no rows" in refusal(bars.iloc[:0])


def test_bar_starts_are_naive_utc(bars: pd.DataFrame) -> None:
    chicago = bars.assign(time=bars["time"].dt.tz_convert("UTC"))
    found = bar_starts(chicago)
    assert found.dtype == np.dtype("datetime64[ns]")
    assert found[:2].astype(str).tolist() == [
        "2024-03-04T15:00:00.000000000",
        "2024-03-04T15:01:00.000000000",
    ]
