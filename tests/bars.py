"""Bars for tests of features and data: hand-written tables and synthetic bars."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from robust_fin.cli.composition import conf_folder
from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.labelling import contracts_by_expiry
from robust_fin.market.sources import Bars

MINUTE = pd.Timedelta("1min")
LEVELS = ["open", "high", "low", "close"]


def config(*overrides: str, command: str = "train") -> DictConfig:
    """Compose the config of a command with these overrides; cached, a copy per call."""
    return copy.deepcopy(_composed(overrides, command))


@cache
def _composed(overrides: tuple[str, ...], command: str) -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(command, overrides=list(overrides))


def hand_bars(text: str) -> pd.DataFrame:
    """Parse lines of `contract, Chicago time, high, low, close, volume` into a labelled bar table.

    A bar opens at its low. Rows keep their order.
    """
    lines = [line.split() for line in text.strip().splitlines()]
    clock = pd.DatetimeIndex([pd.Timestamp(line[1], tz="America/Chicago") for line in lines])
    high, low, close, volume = np.array([line[2:6] for line in lines], dtype=np.float64).T
    table = pd.DataFrame({"time": clock.tz_convert("UTC").as_unit("ns"), "open": low, "high": high})
    table = table.assign(low=low, close=close, volume=volume, contract=[line[0] for line in lines])
    return labelled(table)


def close_bars(text: str) -> pd.DataFrame:
    """Parse lines of `contract, Chicago time, close` into flat bars of volume 1."""
    lines = [line.split() for line in text.strip().splitlines()]
    return hand_bars("\n".join(f"{code} {time} {c} {c} {c} 1" for code, time, c in lines))


def zigzag(rows: int, *, step: float = 1.0, roll: int | None = None) -> pd.DataFrame:
    """Create flat bars of volume 1 at 100, 100 + step, 100 and so on, one per minute from noon.

    From row `roll` they belong to the next contract, at ten times the price.
    """
    minutes = pd.date_range("2024-02-06T12:00", periods=rows, freq="1min")
    lines = []
    for row, minute in enumerate(minutes):
        code, times = ("ESM24", 10) if roll is not None and row >= roll else ("ESH24", 1)
        lines.append(f"{code} {minute:%Y-%m-%dT%H:%M} {times * (100 + step * (row % 2))}")
    return close_bars("\n".join(lines))


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """Add trading dates, and order the contract categories by expiry."""
    labels = TradingCalendar.named("CME_Equity").label(table["time"])
    codes = contracts_by_expiry(table["contract"], table["time"])
    return table.assign(
        contract=pd.Categorical(table["contract"].astype("string"), categories=codes),
        trading_date=labels.trading_date,
        trading_day=labels.trading_day,
    )


def as_bars(table: pd.DataFrame) -> Bars:
    return Bars(table, MINUTE, "hand-made bars", len(table))


@cache
def synthetic_bars(
    rows: int, *, seed: int = 0, signal: float = 0.0, start: str = "2022-03-02"
) -> Bars:
    """Load synthetic bars with the default source; from 2022-03-02 they roll after 11,000 rows."""
    source = instantiate(
        config().source, synthetic={"rows": rows, "seed": seed, "signal": signal, "start": start}
    )
    return source.load()


def file_bars(path: Path) -> Bars:
    return instantiate(config(f"source.path={path}", "source.timezone=UTC").source).load()


def roll_rows(bars: pd.DataFrame) -> list[int]:
    """Return the first row of every contract after the first, for non-overlapping contracts."""
    return (np.flatnonzero(np.diff(bars["contract"].cat.codes)) + 1).tolist()


def shocked(bars: pd.DataFrame, rows: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """Scale each of these rows by its own random factor; the bars stay valid."""
    draw = np.random.default_rng(seed)
    level = draw.uniform(0.5, 2.0, rows.size)
    changed = bars.copy()
    for name, stretch in zip(LEVELS, (1.0, 1.02, 0.98, 1.0), strict=True):
        changed.loc[changed.index[rows], name] = bars[name].to_numpy()[rows] * level * stretch
    for name in ("volume", "vix"):
        if name in bars:
            changed.loc[changed.index[rows], name] = bars[name].to_numpy()[rows] * level + 1
    return changed
