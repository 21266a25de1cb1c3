"""Examples: the rows of a bar table that have every feature, with their labels where known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.data.ledger import first_reasons
from robust_fin.data.targets import ForwardReturn
from robust_fin.errors import SourceError
from robust_fin.features.registry import compute_features, get_feature
from robust_fin.market.schema import stamps
from robust_fin.market.sources import Bars

LAST_RETURN = "close_change_pct"  # what the minus-last-return baseline reads


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows that a net can score, in the order of time.

    Attributes:
        time: datetime64[ns], UTC, start of the bar.
        contract: code of each row's contract (categorical).
        trading_date: datetime64[s].
        features: (rows, features) float64, unscaled.
        last_return: return of the row's own bar, a fraction; NaN on a contract's first bar.
        outcome: forward return, a fraction; NaN where it is not known or not wanted.
        label_end: datetime64[ns]; NaT where there is no label.
        rows_in: rows of the file.
        dropped: rows left out so far, by reason.
        unlabelled: rows without label, by reason; they are scored, and never trained on.
        reports: what was noticed and not changed, by name.
    """

    time: np.ndarray
    contract: pd.Categorical
    trading_date: np.ndarray
    features: Float[np.ndarray, "rows features"]
    last_return: Float[np.ndarray, " rows"]
    outcome: Float[np.ndarray, " rows"]
    label_end: np.ndarray
    rows_in: int
    dropped: dict[str, int]
    unlabelled: dict[str, int]
    reports: dict[str, float]


def make_examples(bars: Bars, *, names: Sequence[str], target: ForwardReturn) -> Examples:
    """Compute features and labels; drop rows with an undefined feature and say why.

    Args:
        bars: validated bars.
        names: the features, in the order of the net's inputs.
        target: what is forecast.

    Raises:
        SourceError: no row has all features, for example because the history is too short.
    """
    columns = [*names, *([] if LAST_RETURN in names else [LAST_RETURN])]
    values = compute_features(bars.table, columns)
    labels = target.label(bars.table, bar=bars.bar)
    undefined = {f"{name} undefined": ~np.isfinite(values[name].to_numpy()) for name in names}
    keep = ~np.logical_or.reduce(list(undefined.values()))
    if not keep.any():
        raise SourceError(_too_short(bars, names))
    missing = np.isnan(labels.outcome) & keep
    unlabelled = {
        "label jumps a break longer than target.max_gap": missing & labels.over_gap,
        "no bar at the horizon in the contract": missing,
    }
    return Examples(
        time=stamps(bars.table)[keep],
        contract=pd.Categorical(bars.table["contract"][keep]),
        trading_date=bars.table["trading_date"].to_numpy()[keep],
        features=values[list(names)].to_numpy()[keep],
        last_return=values[LAST_RETURN].to_numpy()[keep],
        outcome=labels.outcome[keep],
        label_end=labels.label_end[keep],
        rows_in=bars.rows_in,
        dropped=bars.dropped | first_reasons(undefined),
        unlabelled=first_reasons(unlabelled),
        reports=bars.reports,
    )


def _too_short(bars: Bars, names: Sequence[str]) -> str:
    needs = "; ".join(f"{name} needs {get_feature(name).lookback}" for name in names)
    dates = int(bars.table["trading_day"].nunique())
    return (
        f"{bars.origin}: no row has all features. It holds {len(bars.table)} bars on {dates} "
        f"trading dates, and {needs} before a row. Use a longer file, or features that look back "
        "less"
    )
