"""Examples: the rows of a bar table that have every feature, with their labels where known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from robust_fin.data.ledger import first_reasons
from robust_fin.data.targets import ForwardReturn
from robust_fin.errors import SourceError
from robust_fin.features.registry import compute_features, get_feature
from robust_fin.market.schema import stamps
from robust_fin.market.sources import Bars

OVER_GAP = "label jumps a break longer than target.max_gap"
NO_BAR = "no bar at the horizon in the contract"
COLUMNS = ("time", "trading_date", "features", "last_return", "close", "outcome", "label_end")
COUNTS = ("rows_in", "dropped", "unlabelled", "reports")
CODES = np.int32
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
        close: price at which the row's bar ended, from which its outcome starts.
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
    close: Float[np.ndarray, " rows"]
    outcome: Float[np.ndarray, " rows"]
    label_end: np.ndarray
    rows_in: int
    dropped: dict[str, int]
    unlabelled: dict[str, int]
    reports: dict[str, float]

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns, as they are kept on disk; contracts as codes."""
        codes = {"contract": self.contract.codes.astype(CODES)}
        return {name: getattr(self, name) for name in COLUMNS} | codes

    def described(self) -> dict[str, Any]:
        """The rest, for JSON."""
        contracts = [str(code) for code in self.contract.categories]
        counts = {name: getattr(self, name) for name in COUNTS}
        return counts | {"contracts": contracts, "used": list(range(len(contracts)))}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], described: Mapping[str, Any]
    ) -> "Examples":
        """The examples that `arrays` and `described` came from."""
        used, contracts = described["used"], described["contracts"]
        codes = np.zeros(len(contracts), dtype=CODES)
        codes[used] = np.arange(len(used))
        contract = pd.Categorical.from_codes(
            codes[arrays["contract"]], pd.Index([contracts[code] for code in used], dtype="str")
        )
        rest: dict[str, Any] = {name: arrays[name] for name in COLUMNS}
        rest |= {name: described[name] for name in COUNTS}
        return cls(contract=contract, **rest)


def make_examples(bars: Bars, *, names: Sequence[str], target: ForwardReturn) -> Examples:
    """Compute features and labels; drop rows with an undefined feature and say why.

    Args:
        bars: validated bars.
        names: the features, in the order of the net's inputs.
        target: what is forecast.

    Raises:
        SourceError: no row has all features, for example because the history is too short.
    """
    values = compute_features(bars.table, columns_of(names))
    labels = target.label(bars.table, bar=bars.bar)
    undefined = undefined_rows(values, names)
    keep = ~np.logical_or.reduce(list(undefined.values()))
    if not keep.any():
        dates = int(bars.table["trading_day"].nunique())
        raise SourceError(too_short(bars.origin, names, rows=len(bars.table), dates=dates))
    missing = np.isnan(labels.outcome) & keep
    unlabelled = {
        OVER_GAP: missing & labels.over_gap,
        NO_BAR: missing,
    }
    return Examples(
        time=stamps(bars.table)[keep],
        contract=pd.Categorical(bars.table["contract"][keep]),
        trading_date=bars.table["trading_date"].to_numpy()[keep],
        features=values[list(names)].to_numpy()[keep],
        last_return=values[LAST_RETURN].to_numpy()[keep],
        close=bars.table["close"].to_numpy()[keep],
        outcome=labels.outcome[keep],
        label_end=labels.label_end[keep],
        rows_in=bars.rows_in,
        dropped=bars.dropped | first_reasons(undefined),
        unlabelled=first_reasons(unlabelled),
        reports=bars.reports,
    )


def columns_of(names: Sequence[str]) -> list[str]:
    """The features to compute: the inputs, and what a baseline reads."""
    return [*names, *([] if LAST_RETURN in names else [LAST_RETURN])]


def undefined_rows(
    values: pd.DataFrame, names: Sequence[str]
) -> dict[str, Bool[np.ndarray, " rows"]]:
    """Rows that an input leaves undefined, by reason."""
    return {f"{name} undefined": ~np.isfinite(values[name].to_numpy()) for name in names}


def too_short(origin: str, names: Sequence[str], *, rows: int, dates: int) -> str:
    """What to say when no row has all features."""
    needs = "; ".join(f"{name} needs {get_feature(name).lookback}" for name in names)
    return (
        f"{origin}: no row has all features. It holds {rows} bars on {dates} "
        f"trading dates, and {needs} before a row. Use a longer file, or features that look back "
        "less"
    )
