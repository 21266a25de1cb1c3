"""Check that labels and the joined VIX do not depend on data they cannot know."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from robust_fin.data.targets import ForwardReturn, Labels
from robust_fin.features.registry import TRADING_DATES, Lookback
from robust_fin.leaks.perturbations import (
    Change,
    CheckedColumn,
    Findings,
    Leak,
    Mask,
    PerturbationCut,
    Reach,
    change_future,
    describe_bar,
    drop_future,
    drop_past,
    finite_std,
    format_minute,
    last_noticed,
    later_starts,
    perturb_bars,
    reach_between,
    values_differ,
    window_around,
)
from robust_fin.market.labelling import Labeller
from robust_fin.market.schema import bar_starts

LabelFunction = Callable[[pd.DataFrame], Labels]

OUTCOME = "target"
AFTER_END, OTHER_CONTRACT = "bars after label_end", "other contracts"
_CHANGED_BARS = {AFTER_END: "bars after it", OTHER_CONTRACT: "bars of another contract"}
_REMEDY = {
    AFTER_END: "Let label_end be the end of the last bar that the outcome uses",
    OTHER_CONTRACT: "Label rows within their contract, and use NaN where its bars end",
}
VIX, SAME_DAY = "vix", "closes of its date and later"
_KNOWN = pd.Timedelta(hours=15, minutes=15)  # Chicago time at which a day's close is known
_FACTOR = 1.5  # of a changed close


class LabelComparison(NamedTuple):
    """Labels before and after a change of the bars.

    Attributes:
        what: AFTER_END or OTHER_CONTRACT, the bars that must not affect the labels.
        change: the change.
        offset: the row number of the first row of `before` in the full table.
        before: labels of the original bars.
        after: labels of the changed bars; fewer rows if bars were dropped.
        rows: rows of both that must be equal.
    """

    what: str
    change: Change
    offset: int
    before: Labels
    after: Labels
    rows: Int[np.ndarray, " known"]


def check_labels(
    bars: pd.DataFrame, target: ForwardReturn, cuts: Sequence[PerturbationCut], *, bar: pd.Timedelta
) -> Findings:
    """Change and drop the bars after each cut, then change the bars of other contracts.

    A label that ended before the cut must not change, nor one of an unchanged contract.

    Args:
        bars: the table of `robust_fin.market.sources.Bars`, in time order.
        target: `ForwardReturn`, or anything with the same `label` method.
        cuts: at least one, in time order.
        bar: bar length.
    """
    label = partial(target.label, bar=bar)
    base = label(bars)
    std, rows, tried = finite_std(base.outcome), Counter[str](), Counter[str]()
    leaks: dict[str, Leak] = {}
    for comparison in _comparisons(bars, base, label, cuts, bar=bar):
        what, known = comparison.what, comparison.rows
        rows[what] += int(np.isfinite(comparison.before.outcome[known]).sum())
        tried[what] += 1
        differ = _labels_differ(comparison.before, comparison.after, known, std=std)
        if differ.any() and what not in leaks:
            row = comparison.offset + int(known[np.argmax(differ)])
            leaks[what] = _label_leak(bars, base, label, row, comparison)
    checked = [CheckedColumn(OUTCOME, what, tried[what], rows[what]) for what in rows]
    return Findings(list(leaks.values()), checked)


def _labels_differ(
    before: Labels, after: Labels, rows: slice | Int[np.ndarray, " known"], *, std: float
) -> Mask:
    ends, ends_after = before.label_end[rows], after.label_end[rows]
    differ = (ends != ends_after) & ~(np.isnat(ends) & np.isnat(ends_after))
    return differ | values_differ(before.outcome[rows], after.outcome[rows], std=std)


def _comparisons(
    bars: pd.DataFrame,
    base: Labels,
    label: LabelFunction,
    cuts: Sequence[PerturbationCut],
    *,
    bar: pd.Timedelta,
) -> Iterator[LabelComparison]:
    known = ~np.isnat(base.label_end)
    spans = (base.label_end[known] - bar_starts(bars)[known]) / np.timedelta64(1, "D")
    longest = Lookback(int(np.max(spans, initial=0.0)) + 1, TRADING_DATES)
    for cut in cuts:
        window = window_around(bars, cut.last, lookbacks=[longest])
        yield from _compare_at_cut(bars, label, cut.last, window, bar=bar)
    middle = cuts[len(cuts) // 2].last
    yield from _compare_at_cut(bars, label, middle, (0, len(bars)), bar=bar)
    yield from _compare_contracts(bars, base, label)


def _compare_at_cut(
    bars: pd.DataFrame,
    label: LabelFunction,
    last: int,
    window: tuple[int, int],
    *,
    bar: pd.Timedelta,
) -> Iterator[LabelComparison]:
    first, stop = window
    part, known = drop_past(bars.iloc[:stop], first), last + 1 - first
    now = bar_starts(part)[known - 1] + bar.to_timedelta64()
    before = label(part)
    for change in (change_future, drop_future):
        after = label(change(part, known))
        ended = (before.label_end[:known] <= now) | (after.label_end[:known] <= now)
        yield LabelComparison(AFTER_END, change, first, before, after, np.flatnonzero(ended))


def _compare_contracts(
    bars: pd.DataFrame, base: Labels, label: LabelFunction
) -> Iterator[LabelComparison]:
    """Change half of the contracts at a time, by each bit of their codes: all pairs are covered."""
    codes = bars["contract"].cat.codes.to_numpy().astype(np.int64)
    for bit in range(int(codes.max()).bit_length()):
        for side in (0, 1):
            others = codes >> bit & 1 == side
            if others.all() or not others.any():
                continue
            after = label(perturb_bars(bars, others))
            ended = ~others & ~(np.isnat(base.label_end) & np.isnat(after.label_end))
            rows = np.flatnonzero(ended)
            yield LabelComparison(OTHER_CONTRACT, change_future, 0, base, after, rows)


def _label_leak(
    bars: pd.DataFrame, base: Labels, label: LabelFunction, row: int, comparison: LabelComparison
) -> Leak:
    end = base.label_end[row]
    ends = "has no label_end" if np.isnat(end) else f"has the label_end {format_minute(end)} UTC"
    reach = _label_reach(bars, base, label, row, comparison)
    return Leak(
        OUTCOME,
        f"the label at {describe_bar(bars, row)} {ends} and changes with "
        f"{_CHANGED_BARS[comparison.what]}" + ("" if reach is None else f"; it sees {reach}"),
        _REMEDY[comparison.what],
        reach,
    )


def _label_reach(
    bars: pd.DataFrame, base: Labels, label: LabelFunction, row: int, comparison: LabelComparison
) -> Reach | None:
    """Measure how far the label of a row sees among the bars that must not affect it."""
    starts, codes = later_starts(bars, row), bars["contract"].cat.codes.to_numpy()
    skipped = 0
    if comparison.what == AFTER_END and not np.isnat(base.label_end[row]):
        skipped = int(np.searchsorted(bar_starts(bars)[starts], base.label_end[row]))
    std = finite_std(base.outcome)

    def notices(position: int) -> bool:
        first = int(starts[skipped + position])
        if comparison.what == AFTER_END:
            changed = comparison.change(bars, first)
        else:
            changed = perturb_bars(bars, (np.arange(len(bars)) >= first) & (codes != codes[row]))
        return bool(_labels_differ(base, label(changed), slice(row, row + 1), std=std)[0])

    last = last_noticed(notices, starts.size - skipped)
    return None if last is None else reach_between(bar_starts(bars), row, starts, skipped + last)


def check_vix(bars: pd.DataFrame, labeller: Labeller, cuts: Sequence[PerturbationCut]) -> Findings:
    """Change the VIX closes from the trading date of each cut on; no bar up to it may change.

    Args:
        bars: the table of `robust_fin.market.sources.Bars`, in time order.
        labeller: joins the closes; without closes there is nothing to check.
        cuts: in time order.
    """
    if labeller.closes is None:
        return Findings([], [])
    rows, leaks = 0, list[Leak]()
    for cut in cuts:
        first, stop = window_around(bars, cut.last, lookbacks=[])
        part = drop_past(bars.iloc[:stop], first)
        dates = part["trading_date"].to_numpy()
        date = dates[cut.last - first]
        before, after = (
            _joined_vix(part, labeller),
            _joined_vix(part, _change_closes(labeller, date)),
        )
        differ = values_differ(before, after, std=0.0) & (dates <= date)
        rows += int(np.isfinite(before[dates <= date]).sum())
        if differ.any() and not leaks:
            leaks.append(_vix_leak(part, labeller, int(np.argmax(differ))))
    return Findings(leaks, [CheckedColumn(VIX, SAME_DAY, len(cuts), rows)])


def _joined_vix(bars: pd.DataFrame, labeller: Labeller) -> Float[np.ndarray, " rows"]:
    return labeller.label(bars[["time"]])[0]["vix"].to_numpy()


def _change_closes(labeller: Labeller, date: np.datetime64) -> Labeller:
    """Return a labeller whose closes from a date on are changed."""
    closes = labeller.closes
    assert closes is not None, "only called with closes"
    return replace(
        labeller, closes=closes.where(closes.index < pd.Timestamp(date), closes * _FACTOR)
    )


def _vix_leak(bars: pd.DataFrame, labeller: Labeller, row: int) -> Leak:
    """Report the latest close that affects the bar of a row."""
    assert labeller.closes is not None, "only called with closes"
    bar = drop_past(bars.iloc[: row + 1], row)
    days = labeller.closes.index.to_numpy()
    later = days[days >= bar["trading_date"].to_numpy()[0]]
    before = _joined_vix(bar, labeller)

    def notices(position: int) -> bool:
        after = _joined_vix(bar, _change_closes(labeller, later[position]))
        return bool(values_differ(before, after, std=0.0)[0])

    last = last_noticed(notices, later.size)
    assert last is not None, "the bar changed in the comparison"
    day = pd.Timestamp(later[last])
    reach = _close_reach(bars, row, day)
    return Leak(
        VIX,
        f"{describe_bar(bars, row)}, of the trading date {bar['trading_date'].iloc[0]:%Y-%m-%d}, "
        f"has the VIX close of {day:%Y-%m-%d}, which is known at 15:15 Chicago; it sees {reach}",
        "Join the last close of a day strictly before the trading date",
        reach,
    )


def _close_reach(bars: pd.DataFrame, row: int, day: pd.Timestamp) -> Reach:
    """Return the reach from a bar to the time at which a day's close is known."""
    known = (day + _KNOWN).tz_localize("America/Chicago").tz_convert("UTC").tz_localize(None)
    time, until = bar_starts(bars), known.to_datetime64()
    bar_count = np.unique(time[(time > time[row]) & (time < until)]).size
    return Reach(bar_count, float((until - time[row]) / np.timedelta64(1, "m")), to_end=False)
