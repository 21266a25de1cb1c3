"""val_losses.parquet: the losses that choices are made by, a trading date at a time."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.metrics import huber_terms

Losses = Float[np.ndarray, " dates"]


class DailyLosses:
    """The yardstick of a span by trading date.

    Args:
        target: the rank target in [0, 1].
        trading_date: of each row, datetime64.
        train_median: the trivial forecast, in rank units.

    Attributes:
        dates: the distinct dates, increasing.
        rows: of each date.
        trivial: mean Huber loss of the trivial forecast on each date, in squared rank units.
    """

    def __init__(
        self, target: Float[np.ndarray, " rows"], trading_date: np.ndarray, *, train_median: float
    ) -> None:
        """Measure the trivial forecast."""
        self._target = target
        self.dates, self._date = np.unique(trading_date, return_inverse=True)
        self.rows = np.bincount(self._date, minlength=self.dates.size)
        self.trivial = self.of(np.full(target.size, train_median))

    def of(self, score: Float[np.ndarray, " rows"]) -> Losses:
        """Mean Huber loss of a forecast on each date.

        Args:
            score: in rank units.
        """
        terms = huber_terms(score, self._target)
        return np.bincount(self._date, weights=terms, minlength=self.dates.size) / self.rows

    def table(self, net: Losses, members: Mapping[int, Losses], *, fold: int = 0) -> pd.DataFrame:
        """One row a (fold, member, trading_date).

        Args:
            net: losses of the net, or of a population's mean forecast.
            members: losses of single members, by number.
            fold: number of the fold.

        Returns:
            fold, member (null for `net`), trading_date, rows, loss, loss_trivial.
        """
        models = 1 + len(members)
        numbers = pd.Series([None, *members], dtype="Int32")
        return pd.DataFrame(
            {
                "fold": np.full(models * self.dates.size, fold, dtype=np.int32),
                "member": numbers.repeat(self.dates.size).array,
                "trading_date": np.tile(self.dates, models),
                "rows": np.tile(self.rows, models),
                "loss": np.concatenate([net, *members.values()]),
                "loss_trivial": np.tile(self.trivial, models),
            }
        )
