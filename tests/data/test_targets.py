import numpy as np
import pandas as pd
import pytest

from robust_fin.data.targets import ForwardReturn, Labels
from robust_fin.errors import ConfigError
from tests.bars import MINUTE, close_bars

NAN, NAT = float("nan"), "NaT"

# M overlaps H by one stamp; a minute is missing at 08:33, and the break of an hour follows
OVERLAP = """
ESH24 2024-03-11T08:30 100
ESH24 2024-03-11T08:31 110
ESM24 2024-03-11T08:31 1000
ESH24 2024-03-11T08:32 121
ESM24 2024-03-11T08:32 1200
ESM24 2024-03-11T08:34 1500
ESM24 2024-03-11T17:00 1800
"""


def label(text: str, *, horizon: int, max_gap: float | None = None) -> Labels:
    return ForwardReturn(horizon, max_gap).label(close_bars(text), bar=MINUTE)


def clock(label_end: np.ndarray) -> list[str]:
    chicago = pd.DatetimeIndex(label_end, tz="UTC").tz_convert("America/Chicago")
    return [NAT if pd.isna(stamp) else f"{stamp:%H:%M}" for stamp in chicago]


def test_the_next_return_stays_within_its_contract() -> None:
    labels = label(OVERLAP, horizon=1)
    expected = [0.1, 0.1, 0.2, NAN, 0.25, 0.2, NAN]
    np.testing.assert_allclose(labels.outcome, expected, rtol=1e-12)
    assert clock(labels.label_end) == ["08:32", "08:33", "08:33", NAT, "08:35", "17:01", NAT]
    assert not labels.over_gap.any()


def test_a_horizon_counts_bars_of_the_contract() -> None:
    labels = label(OVERLAP, horizon=3)
    np.testing.assert_allclose(labels.outcome, [NAN, NAN, 0.8, NAN, NAN, NAN, NAN], rtol=1e-12)
    assert clock(labels.label_end) == [NAT, NAT, "17:01", NAT, NAT, NAT, NAT]


def test_a_label_ends_when_its_last_bar_does() -> None:
    labels = ForwardReturn(2, None).label(close_bars(OVERLAP), bar=pd.Timedelta("5min"))
    assert clock(labels.label_end) == ["08:37", NAT, "08:39", NAT, "17:05", NAT, NAT]


@pytest.mark.parametrize(
    ("max_gap", "over"),
    [
        (None, []),
        (1, [4, 5]),
        (2, [5]),
        (1.5, [4, 5]),
        (506, []),
    ],
)
def test_a_break_longer_than_max_gap_takes_the_label(max_gap, over: list[int]) -> None:
    labels = label(OVERLAP, horizon=1, max_gap=max_gap)
    assert np.flatnonzero(labels.over_gap).tolist() == over
    assert np.flatnonzero(np.isnan(labels.outcome)).tolist() == sorted([3, 6, *over])
    assert np.flatnonzero(np.isnat(labels.label_end)).tolist() == sorted([3, 6, *over])


def test_a_break_anywhere_within_the_horizon_takes_the_label() -> None:
    labels = label(OVERLAP, horizon=2, max_gap=1)
    assert np.flatnonzero(labels.over_gap).tolist() == [2, 4]
    np.testing.assert_allclose(labels.outcome, [0.21] + [NAN] * 6, rtol=1e-12)


def test_a_horizon_as_long_as_the_contract_labels_nothing() -> None:
    labels = label(OVERLAP, horizon=4, max_gap=1)
    assert np.isnan(labels.outcome).all()
    assert not labels.over_gap.any()


@pytest.mark.parametrize("horizon", [0, -1])
def test_a_horizon_looks_ahead(horizon: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"target\.horizon={horizon} must be an integer number of bars, >= 1"
    ):
        ForwardReturn(horizon, None)


@pytest.mark.parametrize("max_gap", [0.0, -5.0])
def test_a_gap_is_above_zero(max_gap: float) -> None:
    with pytest.raises(ConfigError, match=rf"target\.max_gap={max_gap} must be > 0 minutes"):
        ForwardReturn(1, max_gap)
