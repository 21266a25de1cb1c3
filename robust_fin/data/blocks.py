"""Examples of bars that come block by block: the arrays of `make_examples`, bit for bit."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from robust_fin.data.arrays import Sink
from robust_fin.data.examples import (
    CODES,
    LAST_RETURN,
    NO_BAR,
    OVER_GAP,
    columns_of,
    too_short,
    undefined_rows,
)
from robust_fin.data.ledger import first_reasons
from robust_fin.data.targets import ForwardReturn, Labels
from robust_fin.errors import SourceError
from robust_fin.features.history import contract_rows
from robust_fin.features.streaming import FeatureStream
from robust_fin.market.blocks import BarStream
from robust_fin.market.schema import stamps

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
    sink.append("time", stamps(table)[keep])
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
