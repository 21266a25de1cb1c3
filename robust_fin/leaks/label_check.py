"""Check that no label or VIX value depends on bars that it cannot know."""

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
    Checked,
    Findings,
    Leak,
    Mask,
    PerturbationCut,
    Reach,
    around,
    farthest,
    future_changed,
    future_missing,
    later_stamps,
    moved,
    past_missing,
    reach_to,
    shocked,
    spread_of,
    where,
)
from robust_fin.market.labelling import Labeller
from robust_fin.market.schema import bar_starts

Label = Callable[[pd.DataFrame], Labels]

OUTCOME = "target"
AFTER_END, OTHER_CONTRACT = "bars after label_end", "other contracts"
_REMEDY = {
    AFTER_END: "Let label_end be the end of the last bar that the outcome needs",
    OTHER_CONTRACT: "Label rows inside their contract, and leave those without a future there NaN",
}


class LabelComparison(NamedTuple):
    """One change of bars.

    Attributes:
        what: AFTER_END or OTHER_CONTRACT, what the labels must not notice.
        change: what was done to the bars from a row on.
        offset: of the first row of `before` among all bars.
        before: labels of the bars as they are.
        after: of the changed bars; fewer rows where bars were left out.
        rows: numbers of the rows of both that must be the same.
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
    """Change all bars after each cut and leave them out; labels that have ended stay as they are.

    Then change all bars of some contracts; the labels of the others stay as they are.

    Args:
        bars: the table of `robust_fin.market.sources.Bars`, in the order of time.
        target: what is forecast; anything that labels as `ForwardReturn` does.
        cuts: in the order of time, at least one.
        bar: length of a bar.
    """
    label = partial(target.label, bar=bar)
    base = label(bars)
    spread, rows, tried = spread_of(base.outcome), Counter[str](), Counter[str]()
    leaks: dict[str, Leak] = {}
    for comparison in _comparisons(bars, base, label, cuts, bar=bar):
        before, after = (
            one.outcome[comparison.rows] for one in (comparison.before, comparison.after)
        )
        ends = (one.label_end[comparison.rows] for one in (comparison.before, comparison.after))
        rows[comparison.what] += int(np.isfinite(before).sum())
        tried[comparison.what] += 1
        differ = moved(before, after, spread=spread) | _unlike(*ends)
        if differ.any() and comparison.what not in leaks:
            row = comparison.offset + int(comparison.rows[np.argmax(differ)])
            leaks[comparison.what] = _leak(bars, base, label, row, comparison)
    checked = [Checked(OUTCOME, what, tried[what], rows[what]) for what in rows]
    return Findings(list(leaks.values()), checked)


def _unlike(before: np.ndarray, after: np.ndarray) -> Mask:
    return (before != after) & ~(np.isnat(before) & np.isnat(after))


def _comparisons(
    bars: pd.DataFrame,
    base: Labels,
    label: Label,
    cuts: Sequence[PerturbationCut],
    *,
    bar: pd.Timedelta,
) -> Iterator[LabelComparison]:
    longest = _longest(base, bar_starts(bars))
    for cut in cuts:
        window = around(bars, cut.last, lookbacks=[longest])
        yield from _cut_comparisons(bars, label, cut.last, window, bar=bar)
    middle = cuts[len(cuts) // 2].last
    yield from _cut_comparisons(bars, label, middle, (0, len(bars)), bar=bar)
    yield from _contract_comparisons(bars, base, label)


def _longest(labels: Labels, time: np.ndarray) -> Lookback:
    """How far labels reach, in dates that are sure to hold them."""
    known = ~np.isnat(labels.label_end)
    spans = (labels.label_end[known] - time[known]) / np.timedelta64(1, "D")
    return Lookback(int(np.max(spans, initial=0.0)) + 1, TRADING_DATES)


def _cut_comparisons(
    bars: pd.DataFrame,
    label: Label,
    last: int,
    window: tuple[int, int],
    *,
    bar: pd.Timedelta,
) -> Iterator[LabelComparison]:
    first, stop = window
    part, known = past_missing(bars.iloc[:stop], first), last + 1 - first
    now = bar_starts(part)[known - 1] + bar.to_timedelta64()
    before = label(part)
    for change in (future_changed, future_missing):
        after = label(change(part, known))
        ended = (before.label_end[:known] <= now) | (after.label_end[:known] <= now)
        yield LabelComparison(AFTER_END, change, first, before, after, np.flatnonzero(ended))


def _contract_comparisons(
    bars: pd.DataFrame, base: Labels, label: Label
) -> Iterator[LabelComparison]:
    """Any two contracts differ in a bit of their codes, and are held apart when it is its turn."""
    codes = bars["contract"].cat.codes.to_numpy().astype(np.int64)
    for bit in range(int(codes.max()).bit_length()):
        for side in (0, 1):
            others = codes >> bit & 1 == side
            if others.all() or not others.any():
                continue
            after = label(shocked(bars, others))
            ended = ~others & ~(np.isnat(base.label_end) & np.isnat(after.label_end))
            rows = np.flatnonzero(ended)
            yield LabelComparison(OTHER_CONTRACT, future_changed, 0, base, after, rows)


def _leak(
    bars: pd.DataFrame, base: Labels, label: Label, row: int, comparison: LabelComparison
) -> Leak:
    end = base.label_end[row]
    ends = "has no label_end" if np.isnat(end) else f"has the label_end {_minute(end)} UTC"
    seen = _sees(bars, base, label, row, comparison)
    far = "" if seen is None else f"; it sees {seen}"
    found = f"the label at {where(bars, row)} {ends} and changes with {_BARS[comparison.what]}{far}"
    return Leak(OUTCOME, found, _REMEDY[comparison.what], seen)


_BARS = {AFTER_END: "bars after it", OTHER_CONTRACT: "bars of another contract"}


def _minute(stamp: np.datetime64) -> str:
    return str(np.datetime_as_string(stamp, unit="m"))


def _sees(
    bars: pd.DataFrame, base: Labels, label: Label, row: int, comparison: LabelComparison
) -> Reach | None:
    """How far the label of a row sees among the bars that it must not see."""
    starts, own = later_stamps(bars, row), bars["contract"].cat.codes.to_numpy()
    beyond = 0
    if comparison.what == AFTER_END and not np.isnat(base.label_end[row]):
        beyond = int(np.searchsorted(bar_starts(bars)[starts], base.label_end[row]))
    at, spread = slice(row, row + 1), spread_of(base.outcome)

    def changed(first: int) -> pd.DataFrame:
        if comparison.what == AFTER_END:
            return comparison.change(bars, first)
        return shocked(bars, (np.arange(len(bars)) >= first) & (own != own[row]))

    def notices(place: int) -> bool:
        after = label(changed(int(starts[beyond + place])))
        differ = moved(base.outcome[at], after.outcome[at], spread=spread)
        return bool((differ | _unlike(base.label_end[at], after.label_end[at]))[0])

    last = farthest(notices, starts.size - beyond)
    return None if last is None else reach_to(bar_starts(bars), row, starts, beyond + last)


VIX, SAME_DAY = "vix", "closes of its date and later"
_KNOWN = pd.Timedelta(hours=15, minutes=15)  # in Chicago, when a day's close is there
_FACTOR = 1.5  # of a changed close


def check_vix(bars: pd.DataFrame, labeller: Labeller, cuts: Sequence[PerturbationCut]) -> Findings:
    """Change the VIX closes from the trading date of each cut on; no bar up to it may notice.

    Args:
        bars: the table of `robust_fin.market.sources.Bars`, in the order of time.
        labeller: that joined the closes; one without closes has nothing to be checked.
        cuts: in the order of time.
    """
    if labeller.closes is None:
        return Findings([], [])
    rows, leaks = 0, []
    for cut in cuts:
        first, stop = around(bars, cut.last, lookbacks=[])
        part = bars.iloc[first:stop].reset_index(drop=True)
        dates = part["trading_date"].to_numpy()
        known = dates <= dates[cut.last - first]
        before = joined(part, labeller)
        after = joined(part, later_closes_changed(labeller, dates[cut.last - first]))
        differ = moved(before, after, spread=0.0) & known
        rows += int(np.isfinite(before[known]).sum())
        if differ.any():
            leaks.append(_vix_leaks_leak(part, labeller, int(np.argmax(differ))))
    return Findings(leaks[:1], [Checked(VIX, SAME_DAY, len(cuts), rows)])


def joined(bars: pd.DataFrame, labeller: Labeller) -> Float[np.ndarray, " rows"]:
    """The VIX that the labeller joins to bars."""
    return labeller.label(bars[["time"]])[0]["vix"].to_numpy()


def later_closes_changed(labeller: Labeller, date: np.datetime64) -> Labeller:
    """The same with other closes from a date on."""
    assert labeller.closes is not None, "no closes to change"
    closes = labeller.closes
    return replace(
        labeller, closes=closes.where(closes.index < pd.Timestamp(date), closes * _FACTOR)
    )


def _vix_leaks_leak(bars: pd.DataFrame, labeller: Labeller, row: int) -> Leak:
    """The close farthest ahead that the bar of a row knows."""
    assert labeller.closes is not None, "no closes to see"
    here = bars.iloc[[row]].reset_index(drop=True)
    days = labeller.closes.index.to_numpy()
    later = days[days >= here["trading_date"].to_numpy()[0]]
    notices = partial(_notices, here, labeller, later)
    last = farthest(notices, later.size)
    assert last is not None, "a bar that noticed does so again"
    seen = _reach(bars, row, pd.Timestamp(later[last]))
    return Leak(
        VIX,
        f"{where(bars, row)}, of the trading date {here['trading_date'].iloc[0]:%Y-%m-%d}, has the "
        f"VIX close of {pd.Timestamp(later[last]):%Y-%m-%d}, which is known at 15:15 Chicago; it "
        f"sees {seen}",
        "Join the last close of a day strictly before the trading date",
        seen,
    )


def _notices(here: pd.DataFrame, labeller: Labeller, days: np.ndarray, place: int) -> bool:
    changed = later_closes_changed(labeller, days[place])
    return bool(moved(joined(here, labeller), joined(here, changed), spread=0.0)[0])


def _reach(bars: pd.DataFrame, row: int, day: pd.Timestamp) -> Reach:
    """From a bar to the moment at which a day's close is known."""
    known = (day + _KNOWN).tz_localize("America/Chicago").tz_convert("UTC").tz_localize(None)
    time = bar_starts(bars)
    between = np.unique(time[(time > time[row]) & (time < known.to_datetime64())])
    minutes = (known.to_datetime64() - time[row]) / np.timedelta64(1, "m")
    return Reach(between.size, float(minutes), to_end=False)
