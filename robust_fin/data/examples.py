"""Examples: rows with every feature and their labels, from a table or block by block."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from robust_fin.data.cache import Sink
from robust_fin.data.targets import ForwardReturn, Labels
from robust_fin.errors import SourceError
from robust_fin.features.history import contract_rows
from robust_fin.features.registry import FeatureStream, compute_features, get_feature
from robust_fin.market.schema import bar_starts
from robust_fin.market.sources import Bars
from robust_fin.market.streams import BarStream


@dataclass(frozen=True, slots=True)
class RowLedger:
    """Where the rows of a file went.

    Attributes:
        rows_in: rows of the file.
        dropped: rows left out, by reason.
        spans: rows kept, by span (train, val, test).
        reports: what was noticed and not changed, by name.
    """

    rows_in: int
    dropped: Mapping[str, int]
    spans: Mapping[str, int]
    reports: Mapping[str, float]

    def __post_init__(self) -> None:
        """A ledger that does not add up is our mistake, never the user's."""
        total = sum(self.dropped.values()) + sum(self.spans.values())
        assert total == self.rows_in, f"{total} rows accounted for, {self.rows_in} came in"

    def as_dict(self) -> dict[str, object]:
        """What rows.json holds."""
        return {
            "rows_in": self.rows_in,
            "dropped": dict(self.dropped),
            "spans": dict(self.spans),
            "reports": dict(self.reports),
        }


def first_reasons(reasons: Mapping[str, Bool[np.ndarray, " rows"]]) -> dict[str, int]:
    """Rows dropped by reason; a row with several reasons counts under the first of them."""
    counts: dict[str, int] = {}
    taken: np.ndarray | None = None
    for reason, mask in reasons.items():
        fresh = mask if taken is None else mask & ~taken
        taken = mask if taken is None else taken | mask
        if fresh.any():
            counts[reason] = int(fresh.sum())
    return counts


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
        time=bar_starts(bars.table)[keep],
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


Places = Int[np.ndarray, " rows"]


class LateLabels(NamedTuple):
    """Labels of rows of earlier blocks, known now that their future is there.

    Attributes:
        place: numbers of the rows among the examples; only rows that are examples.
        labels: one entry a row.
    """

    place: np.ndarray
    labels: Labels


class LabelStream:
    """Labels bars whose future may lie in a later block.

    Args:
        target: what is forecast.
        bar: length of a bar.
    """

    def __init__(self, target: ForwardReturn, *, bar: pd.Timedelta) -> None:
        """No bars were seen yet."""
        self._target, self._bar = target, bar
        self._waiting: pd.DataFrame | None = None

    def push(self, block: pd.DataFrame, place: Places) -> tuple[Labels, LateLabels]:
        """Label what can be labelled now.

        Args:
            block: labelled bars that follow those of the calls before.
            place: number of each row among the examples; -1 where it is none.

        Returns:
            The labels of the block, unknown where the horizon lies beyond it, and those of rows
            before it that its bars have settled.
        """
        rows = block[["time", "close", "contract"]].assign(place=place)
        if self._waiting is not None:
            rows = pd.concat([self._waiting, rows], ignore_index=True)
        labels = self._target.label(rows, bar=self._bar)
        first, places = len(rows) - len(block), rows["place"].to_numpy()
        ends = [part[-self._target.horizon :] for part in contract_rows(rows)]
        settled = np.ones(len(rows), dtype=bool)
        settled[np.concatenate(ends)] = False
        late = np.flatnonzero(settled[:first] & (places[:first] >= 0))
        self._waiting = rows[~settled].reset_index(drop=True)
        return (
            Labels(*(part[first:] for part in labels)),
            LateLabels(places[late], Labels(*(part[late] for part in labels))),
        )


def write_examples(
    stream: BarStream, *, names: Sequence[str], target: ForwardReturn, sink: Sink
) -> dict[str, Any]:
    """Compute features and labels block by block.

    Args:
        stream: bars; all of them are taken.
        names: the features, in the order of the net's inputs.
        target: what is forecast.
        sink: gets the arrays of `Examples.arrays`.

    Returns:
        What `Examples.described` says.

    Raises:
        SourceError: no row has all features, for example because the history is too short.
    """
    features = FeatureStream(columns_of(names))
    labelling = LabelStream(target, bar=stream.source.length)
    undefined: Counter[str] = Counter()
    kept = labelled = over_gap = rows = 0
    days: set[int] = set()
    for table in stream:
        values = features.push(table)
        reasons = undefined_rows(values, names)
        undefined.update(first_reasons(reasons))
        keep = ~np.logical_or.reduce(list(reasons.values()))
        place = np.where(keep, kept + np.cumsum(keep) - 1, -1)
        labels, late = labelling.push(table, place)
        _append(sink, table, values, labels, keep=keep, names=names)
        for name in ("outcome", "label_end"):
            sink.patch(name, late.place, getattr(late.labels, name))
        for part in (Labels(*(one[keep] for one in labels)), late.labels):
            labelled += int((~np.isnan(part.outcome)).sum())
            over_gap += int(part.over_gap.sum())
        kept, rows = kept + int(keep.sum()), rows + len(table)
        days.update(np.unique(table["trading_day"]).tolist())
    if not kept:
        raise SourceError(too_short(stream.source.origin, names, rows=rows, dates=len(days)))
    missing = {OVER_GAP: over_gap, NO_BAR: kept - labelled - over_gap}
    return {
        "rows_in": stream.rows_in,
        "dropped": stream.dropped | _in_order(undefined, [f"{name} undefined" for name in names]),
        "unlabelled": _in_order(missing, list(missing)),
        "reports": stream.reports(),
        "contracts": stream.contracts,
        "used": stream.used.tolist(),
    }


def _append(
    sink: Sink,
    table: pd.DataFrame,
    values: pd.DataFrame,
    labels: Labels,
    *,
    keep: np.ndarray,
    names: Sequence[str],
) -> None:
    sink.append("time", bar_starts(table)[keep])
    sink.append("trading_date", table["trading_date"].to_numpy()[keep])
    sink.append("features", values[list(names)].to_numpy()[keep])
    sink.append("last_return", values[LAST_RETURN].to_numpy()[keep])
    sink.append("close", table["close"].to_numpy()[keep])
    sink.append("outcome", labels.outcome[keep])
    sink.append("label_end", labels.label_end[keep])
    sink.append("contract", table["contract"].cat.codes.to_numpy().astype(CODES)[keep])


def _in_order(counts: dict[str, int], reasons: Sequence[str]) -> dict[str, int]:
    """The reasons that occurred, in the order in which they are asked about."""
    return {reason: counts[reason] for reason in reasons if counts.get(reason)}
