"""The forward return a forecast is about, and when each label ends."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.errors import ConfigError
from robust_fin.features.history import contract_rows
from robust_fin.market.schema import stamps


class Labels(NamedTuple):
    """One entry a bar.

    Attributes:
        outcome: forward return, as a fraction; NaN where the future is not there or not wanted.
        label_end: datetime64[ns], end of the last bar the return needs; NaT where there is none.
        over_gap: whether a label exists but jumps a break longer than allowed.
    """

    outcome: Float[np.ndarray, " rows"]
    label_end: np.ndarray
    over_gap: np.ndarray


@dataclass(frozen=True, slots=True)
class ForwardReturn:
    """close[t + horizon] / close[t] - 1 within one contract.

    Attributes:
        horizon: in bars of the contract, at least 1.
        max_gap: longest time in minutes between the starts of successive bars that a label may
            span; None allows any (nights, weekends).
    """

    horizon: int
    max_gap: float | None

    def __post_init__(self) -> None:
        """Refuse a horizon that looks at the present or the past."""
        if not isinstance(self.horizon, int) or self.horizon < 1:
            raise ConfigError(
                f"target.horizon={self.horizon} must be a whole number of bars, at least 1"
            )
        if self.max_gap is not None and self.max_gap <= 0:
            raise ConfigError(f"target.max_gap={self.max_gap} must be above 0 minutes, or null")

    def label(self, bars: pd.DataFrame, *, bar: pd.Timedelta) -> Labels:
        """Label every bar.

        Args:
            bars: the table of `robust_fin.market.sources.Bars`, in the order of time.
            bar: length of a bar.
        """
        outcome = np.full(len(bars), np.nan)
        label_end = np.full(len(bars), np.datetime64("NaT"), dtype="datetime64[ns]")
        over_gap = np.zeros(len(bars), dtype=bool)
        close = bars["close"].to_numpy()
        time = stamps(bars)
        for rows in contract_rows(bars):
            now, then = rows[: -self.horizon], rows[self.horizon :]
            outcome[now] = close[then] / close[now] - 1
            label_end[now] = time[then] + bar.to_timedelta64()
            over_gap[now] = self._jumps(time[rows])
        outcome[over_gap] = np.nan
        label_end[over_gap] = np.datetime64("NaT")
        return Labels(outcome, label_end, over_gap)

    def _jumps(self, time: np.ndarray) -> np.ndarray:
        if self.max_gap is None:
            return np.zeros(max(0, time.size - self.horizon), dtype=bool)
        long = np.diff(time) > np.timedelta64(round(self.max_gap * 60e9), "ns")
        seen = np.concatenate([[0], np.cumsum(long)])
        return seen[self.horizon :] > seen[: -self.horizon]
