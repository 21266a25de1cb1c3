import functools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kurtosis, spearmanr

from robust_fin.errors import ConfigError
from robust_fin.market import synthetic_path as synthetic_walk
from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.synthetic import SyntheticMarket, planted_forecast, synthetic_market
from tests.bars import config, instantiate

STUDY_ROWS = 1_073_305


@functools.lru_cache(maxsize=4)
def market(rows: int, seed: int, signal: float = 0.0) -> SyntheticMarket:
    return synthetic_market(rows, seed=seed, signal=signal)


def next_returns(bars: pd.DataFrame) -> np.ndarray:
    """Return from close[t] to close[t + 1] within the contract, else NaN."""
    close, contract = bars["close"].to_numpy(), bars["contract"].to_numpy()
    after = np.append(close[1:] / close[:-1] - 1, np.nan)
    return np.where(np.append(contract[1:] == contract[:-1], False), after, np.nan)


def last_returns(bars: pd.DataFrame) -> np.ndarray:
    return np.concatenate([[np.nan], next_returns(bars)[:-1]])


def rank_correlation(feature: np.ndarray, outcome: np.ndarray) -> float:
    known = np.isfinite(feature) & np.isfinite(outcome)
    return float(spearmanr(feature[known], outcome[known]).statistic)


def absolute_autocorrelation(returns: np.ndarray, lag: int) -> float:
    size = np.abs(returns[np.isfinite(returns)])
    size = size - size.mean()
    return float((size[lag:] * size[:-lag]).mean() / (size**2).mean())


def one_minute(bars: pd.DataFrame) -> np.ndarray:
    """Return over steps of exactly one minute within the contract."""
    apart = bars["time"].diff().shift(-1) == pd.Timedelta("1min")
    returns = next_returns(bars)
    return returns[apart.to_numpy() & np.isfinite(returns)]


def test_the_planted_forecast_is_its_closed_form() -> None:
    change = np.array([0.0002, -0.0002, 0.0003, 0.0006, 0.0, np.nan, 0.0001])
    spread = np.array([0.0004, 0.0004, 0.0006, 0.0012, 0.0004, 0.0004, 0.0])
    third = math.tanh(1.0) * math.tanh(2 / 3)
    expected = [-third, third, 0.0, math.tanh(1.0) * math.tanh(2.0), 0.0, 0.0, 0.0]
    np.testing.assert_allclose(planted_forecast(change, spread), expected, rtol=1e-12, atol=1e-15)


def test_synthetic_bars_have_the_schema_columns() -> None:
    bars = market(30_000, 0).bars
    assert list(bars.columns) == [
        "time", "open", "high", "low", "close", "volume", "contract", "session", "vix",
    ]  # fmt: skip
    assert str(bars["time"].dtype) == "datetime64[ns, UTC]"
    assert all(bars[name].dtype == np.float64 for name in ("open", "close", "volume", "vix"))
    assert set(bars["session"]) == {"RTH", "ETH"}
    assert isinstance(bars["contract"].iloc[0], str)
    assert len(bars) == 30_000
    assert bars.notna().all().all()


def test_synthetic_bars_satisfy_the_schema_rules() -> None:
    bars = market(200_000, 1).bars
    prices = bars[["open", "high", "low", "close"]]
    assert (prices > 0).all().all()
    assert (prices.to_numpy() / 0.25 % 1 == 0).all()
    assert (bars["high"] >= prices.max(axis=1)).all()
    assert (bars["low"] <= prices.min(axis=1)).all()
    assert (bars["volume"] >= 1).all()
    assert (bars["volume"] % 1 == 0).all()
    assert bars["time"].is_monotonic_increasing
    assert bars["time"].is_unique


def test_synthetic_bars_lie_in_calendar_sessions() -> None:
    bars = market(200_000, 1).bars
    labels = TradingCalendar.named("CME_Equity").label(bars["time"])
    assert not labels.outside.any()
    assert not labels.late.any()
    assert ((bars["session"] == "RTH").to_numpy() == labels.rth).all()
    count = pd.Series(labels.trading_date).value_counts()
    assert count[pd.Timestamp("2022-01-17")] <= 19 * 60  # open until 12:00 Chicago on MLK day
    assert count[pd.Timestamp("2022-01-18")] > 0.95 * 23 * 60


def test_contracts_roll_on_monday_of_the_expiry_week() -> None:
    bars = market(200_000, 2).bars
    assert list(bars["contract"].unique()) == ["ESH22", "ESM22", "ESU22"]
    first = bars.groupby("contract")["time"].min().dt.tz_convert("America/Chicago")
    assert first["ESM22"].strftime("%Y-%m-%d") == "2022-03-14"
    assert first["ESU22"].strftime("%Y-%m-%d") == "2022-06-13"
    assert first["ESM22"].hour == 0
    at = np.flatnonzero(bars["contract"].to_numpy()[1:] != bars["contract"].to_numpy()[:-1])
    close = bars["close"].to_numpy()
    jump = np.abs(close[at + 1] / close[at] - 1)
    assert jump.max() < 0.02


def test_vix_is_constant_within_a_date_and_uses_earlier_dates() -> None:
    bars = market(200_000, 1).bars
    day = TradingCalendar.named("CME_Equity").label(bars["time"]).trading_day
    index = bars.groupby(day)["vix"]
    assert (index.nunique() == 1).all()
    realised = pd.Series(last_returns(bars) ** 2).groupby(day).sum()
    ahead = np.corrcoef(np.log(index.first().to_numpy()), np.log(realised.to_numpy()))[0, 1]
    assert ahead > 0.3
    # the index of a date is a function of earlier dates: bars of the date itself cannot move it
    cut = int(np.flatnonzero(day == day[100_000])[0]) + 1
    again = synthetic_market(cut, seed=1).bars
    assert again["vix"].iloc[-1] == bars["vix"].iloc[cut - 1]


def test_a_seed_reproduces_its_bars_and_longer_tables_extend_them() -> None:
    long = market(200_000, 1).bars
    pd.testing.assert_frame_equal(synthetic_market(200_000, seed=1).bars, long)
    pd.testing.assert_frame_equal(synthetic_market(70_001, seed=1).bars, long.iloc[:70_001])
    assert not synthetic_market(1000, seed=2).bars["close"].equals(long["close"].iloc[:1000])


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 2))])
def test_without_a_signal_nothing_predicts_the_next_return(seed: int) -> None:
    made = market(500_000, seed)
    bars, outcome = made.bars, next_returns(made.bars)
    high, low, close = (bars[name].to_numpy() for name in ("high", "low", "close"))
    change, spread = last_returns(bars), (high - low) / close
    features = {
        "close_change_pct": change,
        "three bars": pd.Series(close).pct_change(3).to_numpy(),
        "close in the bar": (2 * close - high - low) / close,
        "open in the bar": (2 * bars["open"].to_numpy() - high - low) / close,
        "body": close - bars["open"].to_numpy(),
        "price_range": spread,
        "volume": bars["volume"].to_numpy(),
        "signed volume": np.sign(change) * bars["volume"].to_numpy(),
        "gap to the next bar": np.append(np.diff(bars["time"].astype("int64")), np.nan),
        "vix": bars["vix"].to_numpy(),
        "level": close,
        "planted": planted_forecast(change, spread),
    }
    found = {name: rank_correlation(feature, outcome) for name, feature in features.items()}
    assert {name: value for name, value in found.items() if abs(value) > 0.005} == {}
    assert math.isnan(made.oracle_rank_ic)
    assert np.nanmax(np.abs(made.oracle)) == 0


def test_the_oracle_equals_its_closed_form_and_is_nan_at_contract_ends() -> None:
    made = market(200_000, 4, 0.05)
    bars = made.bars
    spread = (bars["high"] - bars["low"]) / bars["close"]
    closed_form = planted_forecast(last_returns(bars), spread.to_numpy())
    last = (bars["contract"] != bars["contract"].shift(-1)).to_numpy()
    np.testing.assert_array_equal(np.isnan(made.oracle), last)
    np.testing.assert_array_equal(made.oracle[~last], closed_form[~last])
    measured = rank_correlation(made.oracle, next_returns(bars))
    assert made.oracle_rank_ic == pytest.approx(measured, abs=1e-12)


def test_with_a_signal_the_path_equals_a_bar_by_bar_simulation() -> None:
    rng, size, level = np.random.default_rng(0), 400, 18_000
    draws = synthetic_walk.Draws(
        sigma=rng.uniform(1e-4, 4e-4, size),
        shock=rng.standard_normal(size) * 2e-4,
        rounding=rng.random(size),
        reach=rng.standard_exponential((size, 2)) * 0.3,
        edge=rng.random((size, 2)),
        step=rng.integers(-1, 2, size),
    )
    walked = synthetic_walk.walk_stretch(draws, level, 0.4, strength=0.5, fresh=False)
    before, forecast = level, 0.4
    for bar in range(size):
        pull = 0.5 * math.hypot(draws.sigma[bar], 2e-4) * level * forecast
        move = math.floor(draws.shock[bar] * level + draws.rounding[bar] + pull)
        close, opened = before + move, before + int(draws.step[bar])
        up, down = np.floor(draws.reach[bar] * draws.sigma[bar] * level + draws.edge[bar])
        high, low = max(opened, close) + int(up), min(opened, close) - int(down)
        change, spread = np.array([close / before - 1]), np.array([(high - low) / close])
        forecast = float(planted_forecast(change, spread)[0])
        expected = [opened, high, low, close, forecast]
        assert [entry[bar] for entry in walked] == pytest.approx(expected, abs=1e-12)
        before = close


@pytest.mark.parametrize(
    ("signal", "seed"),
    [
        (0.10, 14),  # a seed whose gain is a fifth above the usual one
        (0.05, 3),
        pytest.param(0.02, 0, marks=pytest.mark.slow),
        pytest.param(0.02, 15, marks=pytest.mark.slow),
        pytest.param(0.10, 15, marks=pytest.mark.slow),
    ],
)
def test_the_oracle_reaches_the_target_rank_correlation(signal: float, seed: int) -> None:
    assert market(500_000, seed, signal).oracle_rank_ic == pytest.approx(signal, abs=0.004)


def test_the_oracle_ranks_better_than_its_parts() -> None:
    made = market(500_000, 3, 0.05)
    bars, outcome = made.bars, next_returns(made.bars)
    spread = ((bars["high"] - bars["low"]) / bars["close"]).to_numpy()
    assert rank_correlation(-last_returns(bars), outcome) < 0.85 * made.oracle_rank_ic
    assert abs(rank_correlation(spread, outcome)) < 0.005
    for weight in (spread, np.sqrt(spread), 1 / (spread + 1e-4)):
        assert rank_correlation(made.oracle * weight, outcome) < made.oracle_rank_ic


def test_statistics_resemble_the_real_file() -> None:
    bars = market(500_000, 1).bars
    returns = one_minute(bars)
    assert 0.12 < (returns == 0).mean() < 0.22
    assert absolute_autocorrelation(next_returns(bars), 60) > 0.15
    assert 30 < kurtosis(returns) < 800
    spread = next_returns(bars)
    regular = (bars["session"] == "RTH").to_numpy()
    assert np.nanstd(spread[regular]) > 1.6 * np.nanstd(spread[~regular])
    volume = bars["volume"].to_numpy()
    assert volume[regular].mean() > 7 * volume[~regular].mean()
    night = bars["time"].dt.tz_convert("America/Chicago").dt.hour.to_numpy()
    at = {hour: np.nanstd(spread[night == hour]) for hour in (2, 9, 11, 14, 23)}
    assert at[9] > at[11] < at[14]
    assert at[23] < at[2] < at[11]


@pytest.mark.slow
def test_statistics_over_five_seeds_at_the_study_size() -> None:
    tails = []
    for seed in range(5):
        bars = synthetic_market(STUDY_ROWS, seed=seed).bars
        returns = one_minute(bars)
        tails.append(kurtosis(returns))
        assert 0.12 <= (returns == 0).mean() <= 0.22
        assert absolute_autocorrelation(next_returns(bars), 60) > 0.15
    assert 100 < np.median(tails) < 450


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 10))
def test_without_a_signal_the_last_return_predicts_nothing(seed: int) -> None:
    bars = synthetic_market(500_000, seed=seed).bars
    assert abs(rank_correlation(-last_returns(bars), next_returns(bars))) <= 0.005


@pytest.mark.slow
def test_ten_million_rows_keep_positive_prices() -> None:
    bars = synthetic_market(10_000_000, seed=0, start="1990-01-02").bars
    assert bars["low"].min() > 100
    assert bars["contract"].nunique() > 100


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fewer_degrees_of_freedom_make_fatter_tails(seed: int) -> None:
    usual = one_minute(market(200_000, seed).bars)
    fat = one_minute(synthetic_market(200_000, seed=seed, tail_df=2.5).bars)
    assert kurtosis(usual) < 400 < kurtosis(fat)
    assert 0.7 < fat.std() / usual.std() < 1.3


def test_six_degrees_of_freedom_is_the_default() -> None:
    six = synthetic_market(30_000, seed=0, tail_df=6.0).bars
    pd.testing.assert_frame_equal(six, market(30_000, 0).bars)


@pytest.mark.slow
def test_the_fat_tails_config_has_an_excess_kurtosis_above_400() -> None:
    bars = instantiate(config("source=fat_tails").source).load().table
    assert len(bars) == 1_000_000
    assert kurtosis(one_minute(bars)) == pytest.approx(1_798, rel=0.001)


@pytest.mark.parametrize("rows", [1, 2, 3, 50])
@pytest.mark.parametrize("signal", [0.0, 0.05])
def test_few_rows_are_accepted(rows: int, signal: float) -> None:
    made = synthetic_market(rows, seed=0, signal=signal)
    assert len(made.bars) == rows
    assert math.isnan(made.oracle[-1])


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (0, {}, "rows is 0"),
        (-5, {}, "rows is -5"),
        (10, {"seed": -1}, "seed is -1"),
        (10, {"signal": -0.05}, "signal is -0.05"),
        (10, {"signal": 0.31}, "signal is 0.31"),
        (10, {"signal": math.nan}, "signal is nan"),
        (10, {"price": 0.0}, "price is 0.0"),
        (10, {"price": math.inf}, "price is inf"),
        (10, {"tail_df": 2.0}, "tail_df is 2.0"),
        (10, {"tail_df": math.nan}, "tail_df is nan"),
        (10, {"regime_sessions": 0.0}, "regime_sessions is 0.0"),
        (10, {"start": "someday"}, "start is 'someday'"),
        (10, {"start": "2065-12-30"}, "2065-12-31"),
        (100_000_000, {}, "100000000 rows from 2021-12-14"),
    ],
)
def test_a_setting_out_of_range_raises_with_its_value(
    rows: int, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        synthetic_market(rows, **{"seed": 0, **settings})


def test_volatility_regimes_last_as_long_as_set() -> None:
    def memory(sessions: float) -> float:
        bars = synthetic_market(140_000, seed=1, regime_sessions=sessions).bars
        change = np.log(bars["close"]).diff().pow(2)
        daily = np.log(change.groupby(bars["time"].dt.date).mean().to_numpy()[1:-1])
        return float(np.corrcoef(daily[:-5], daily[5:])[0, 1])  # a week apart

    assert memory(30.0) > 0.3
    assert memory(1.0) < memory(30.0) - 0.2
