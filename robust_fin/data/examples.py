"""Examples: rows with all features and their labels, computed from a table or block by block."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from robust_fin.data.cache import ArraySink
from robust_fin.data.splits import LabelledRows
from robust_fin.data.targets import ForwardReturn, Labels
from robust_fin.errors import SourceError
from robust_fin.features.history import contract_rows
from robust_fin.features.registry import FeatureStream, compute_features, get_feature
from robust_fin.market.schema import bar_starts
from robust_fin.market.sources import Bars
from robust_fin.market.streams import BarStream

OVER_GAP = "label jumps a break longer than target.max_gap"
NO_BAR = "no bar at the horizon in the contract"
COLUMNS = ("time", "trading_date", "features", "last_return", "close", "outcome", "label_end")
COUNTS = ("rows_in", "dropped", "unlabelled", "reports")
LAST_RETURN = "close_change_pct"  # read by the baseline minus_last_return

Mask = Bool[np.ndarray, " rows"]


@dataclass(frozen=True, slots=True)
class RowLedger:
    """Account of every row of the input.

    Attributes:
        rows_in: rows of the file.
        dropped: rows left out, by reason.
        spans: rows used, by span (train, val, test).
        reports: observations about the bars that changed nothing, by name.
    """

    rows_in: int
    dropped: Mapping[str, int]
    spans: Mapping[str, int]
    reports: Mapping[str, float]

    def __post_init__(self) -> None:
        total = sum(self.dropped.values()) + sum(self.spans.values())
        assert total == self.rows_in, f"{total} rows accounted for, {self.rows_in} came in"

    def as_dict(self) -> dict[str, object]:
        """Return the content of rows.json."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows that a net can score, in time order.

    Attributes:
        time: datetime64[ns], UTC, start of the bar.
        contract: code of each row's contract (categorical).
        trading_date: datetime64[s].
        features: (rows, features) float64, unscaled.
        last_return: return of the row's bar, a fraction; NaN on a contract's first bar.
        close: closing price of the bar, from which the outcome starts.
        outcome: forward return, a fraction; NaN if unknown or excluded.
        label_end: datetime64[ns]; NaT without a label.
        rows_in: rows of the file.
        dropped: rows left out so far, by reason.
        unlabelled: rows without a label, by reason; they are scored but never trained on.
        reports: observations about the bars that changed nothing, by name.
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
        """Return the columns as stored on disk, contracts as codes."""
        codes = {"contract": self.contract.codes.astype(np.int32)}
        return {name: getattr(self, name) for name in COLUMNS} | codes

    def metadata(self) -> dict[str, Any]:
        """Return everything else, for JSON."""
        contracts = [str(code) for code in self.contract.categories]
        counts = {name: getattr(self, name) for name in COUNTS}
        return counts | {"contracts": contracts, "used": list(range(len(contracts)))}

    def labelled_rows(self, rows: Int[np.ndarray, " _rows"]) -> LabelledRows:
        """Return the columns of some rows that a split is cut by."""
        return LabelledRows(
            self.time[rows], self.label_end[rows], self.trading_date[rows], self.contract[rows]
        )

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
    ) -> "Examples":
        """Restore examples from their `arrays` and `metadata`."""
        used, contracts = metadata["used"], metadata["contracts"]
        codes = np.zeros(len(contracts), dtype=np.int32)
        codes[used] = np.arange(len(used))
        contract = pd.Categorical.from_codes(
            codes[arrays["contract"]], pd.Index([contracts[code] for code in used], dtype="str")
        )
        rest: dict[str, Any] = {name: arrays[name] for name in COLUMNS}
        rest |= {name: metadata[name] for name in COUNTS}
        return cls(contract=contract, **rest)


def make_examples(bars: Bars, *, names: Sequence[str], target: ForwardReturn) -> Examples:
    """Compute features and labels; drop rows with an undefined feature and count the reasons.

    Args:
        bars: validated bars.
        names: the features, in the order of the net's inputs.
        target: definition of the labels.

    Raises:
        SourceError: no row has all features, for example because the history is too short.
    """
    table = bars.table
    values = compute_features(table, columns_of(names))
    labels = target.label(table, bar=bars.bar)
    undefined = undefined_rows(values, names)
    keep = ~np.logical_or.reduce(list(undefined.values()))
    if not keep.any():
        dates = int(table["trading_day"].nunique())
        has_volume = bool((table["volume"] > 0).any())
        raise SourceError(
            _no_row_message(bars.origin, names, rows=len(table), dates=dates, has_volume=has_volume)
        )
    missing = np.isnan(labels.outcome) & keep
    return Examples(
        **_columns(table, values, labels, keep=keep, names=names),
        contract=pd.Categorical(table["contract"][keep]),
        rows_in=bars.rows_in,
        dropped=bars.dropped | first_reasons(undefined),
        unlabelled=first_reasons({OVER_GAP: missing & labels.over_gap, NO_BAR: missing}),
        reports=bars.reports,
    )


def write_examples(
    stream: BarStream, *, names: Sequence[str], target: ForwardReturn, sink: ArraySink
) -> dict[str, Any]:
    """Compute features and labels block by block.

    Args:
        stream: bars; all of them are read.
        names: the features, in the order of the net's inputs.
        target: definition of the labels.
        sink: receives the arrays of `Examples.arrays`.

    Returns:
        The same as `Examples.metadata`.

    Raises:
        SourceError: no row has all features, for example because the history is too short.
    """
    features = FeatureStream(columns_of(names))
    labelling = LabelStream(target, bar=stream.bars.bar)
    undefined: Counter[str] = Counter()
    kept = labelled = over_gap = rows = 0
    has_volume = False
    days: set[int] = set()
    for table in stream:
        values = features.push(table)
        reasons = undefined_rows(values, names)
        undefined.update(first_reasons(reasons))
        keep = ~np.logical_or.reduce(list(reasons.values()))
        labels, late = labelling.push(table, np.where(keep, kept + np.cumsum(keep) - 1, -1))
        for name, column in _columns(table, values, labels, keep=keep, names=names).items():
            sink.append(name, column)
        codes = table["contract"].cat.codes.to_numpy()
        sink.append("contract", codes.astype(np.int32)[keep])
        for name in ("outcome", "label_end"):
            sink.patch(name, late.example, getattr(late.labels, name))
        for part in (Labels(*(column[keep] for column in labels)), late.labels):
            labelled += int((~np.isnan(part.outcome)).sum())
            over_gap += int(part.over_gap.sum())
        kept, rows = kept + int(keep.sum()), rows + len(table)
        has_volume |= bool((table["volume"] > 0).any())
        days.update(np.unique(table["trading_day"]).tolist())
    if not kept:
        raise SourceError(
            _no_row_message(
                stream.source.origin, names, rows=rows, dates=len(days), has_volume=has_volume
            )
        )
    ordered = {f"{name} undefined": undefined[f"{name} undefined"] for name in names}
    missing = {OVER_GAP: over_gap, NO_BAR: kept - labelled - over_gap}
    return {
        "rows_in": stream.bars.rows_in,
        "dropped": stream.bars.dropped | {name: count for name, count in ordered.items() if count},
        "unlabelled": {name: count for name, count in missing.items() if count},
        "reports": stream.reports(),
        "contracts": stream.contracts,
        "used": list(range(len(stream.contracts))),
    }


def columns_of(names: Sequence[str]) -> list[str]:
    """Return the features to compute: the inputs, and the one that a baseline reads."""
    return [*names, *([] if LAST_RETURN in names else [LAST_RETURN])]


def undefined_rows(values: pd.DataFrame, names: Sequence[str]) -> dict[str, Mask]:
    """Return a mask of the rows with an undefined input, by reason."""
    return {f"{name} undefined": ~np.isfinite(values[name].to_numpy()) for name in names}


def first_reasons(reasons: Mapping[str, Mask]) -> dict[str, int]:
    """Count rows by reason; a row with several reasons counts under the first of them."""
    counts: dict[str, int] = {}
    counted: np.ndarray = np.zeros(1, dtype=bool)
    for reason, mask in reasons.items():
        count = int((mask & ~counted).sum())
        counted = mask | counted
        if count:
            counts[reason] = count
    return counts


def _columns(
    table: pd.DataFrame,
    values: pd.DataFrame,
    labels: Labels,
    *,
    keep: Mask,
    names: Sequence[str],
) -> dict[str, Any]:
    """Return the arrays of `COLUMNS` for the rows to keep."""
    return {
        "time": bar_starts(table)[keep],
        "trading_date": table["trading_date"].to_numpy()[keep],
        "features": values[list(names)].to_numpy()[keep],
        "last_return": values[LAST_RETURN].to_numpy()[keep],
        "close": table["close"].to_numpy()[keep],
        "outcome": labels.outcome[keep],
        "label_end": labels.label_end[keep],
    }


def _no_row_message(
    origin: str, names: Sequence[str], *, rows: int, dates: int, has_volume: bool
) -> str:
    if not has_volume:
        return (
            f"{origin}: no row has all features, and the volume is 0 in all {rows} bars, as in "
            "many files of currencies and indices. Choose features that read no volume, such as "
            "features.names=[close_change_pct,price_range], or name a column that has it with "
            "source.columns={volume: NAME}"
        )
    lookbacks = "; ".join(f"{name} needs {get_feature(name).lookback}" for name in names)
    return (
        f"{origin}: no row has all features. It holds {rows} bars on {dates} "
        f"trading dates, and {lookbacks} before a row. Use a longer file, or features that look "
        "back less"
    )


class LateLabels(NamedTuple):
    """Labels of examples of earlier blocks whose future has arrived.

    Attributes:
        example: numbers of the examples.
        labels: one entry per example.
    """

    example: Int[np.ndarray, " late"]
    labels: Labels


class LabelStream:
    """Labels bars whose future may lie in a later block.

    Args:
        target: definition of the labels.
        bar: length of a bar.
    """

    def __init__(self, target: ForwardReturn, *, bar: pd.Timedelta) -> None:
        self._target, self._bar = target, bar
        self._waiting: pd.DataFrame | None = None

    def push(
        self, block: pd.DataFrame, example: Int[np.ndarray, " rows"]
    ) -> tuple[Labels, LateLabels]:
        """Label the bars of a block, and earlier bars whose horizon lies in it.

        Args:
            block: bars that follow those of earlier calls.
            example: number of each row among the examples; -1 for rows that are dropped.

        Returns:
            The labels of the block, unknown if the horizon lies beyond it, and those of earlier
            rows that are now known.
        """
        rows = block[["time", "close", "contract"]].assign(example=example)
        if self._waiting is not None:
            rows = pd.concat([self._waiting, rows], ignore_index=True)
        labels = self._target.label(rows, bar=self._bar)
        first, examples = len(rows) - len(block), rows["example"].to_numpy()
        ends = [part[-self._target.horizon :] for part in contract_rows(rows)]
        known = np.ones(len(rows), dtype=bool)
        known[np.concatenate(ends)] = False
        late = np.flatnonzero(known[:first] & (examples[:first] >= 0))
        self._waiting = rows[~known].reset_index(drop=True)
        return (
            Labels(*(column[first:] for column in labels)),
            LateLabels(examples[late], Labels(*(column[late] for column in labels))),
        )
