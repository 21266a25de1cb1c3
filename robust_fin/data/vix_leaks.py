"""Daily VIX closes joined to bars: a bar may know those of days before its trading date alone."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.data.cuts import Cut
from robust_fin.data.leaks import Checked, Findings, Leak, Reach, farthest, moved, where
from robust_fin.data.shocks import around
from robust_fin.market.labelling import Labeller
from robust_fin.market.schema import stamps

VIX, SAME_DAY = "vix", "closes of its date and later"
_KNOWN = pd.Timedelta(hours=15, minutes=15)  # in Chicago, when a day's close is there
_FACTOR = 1.5  # of a changed close


def check_vix(bars: pd.DataFrame, labeller: Labeller, cuts: Sequence[Cut]) -> Findings:
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
            leaks.append(_leak(part, labeller, int(np.argmax(differ))))
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


def _leak(bars: pd.DataFrame, labeller: Labeller, row: int) -> Leak:
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
    time = stamps(bars)
    between = np.unique(time[(time > time[row]) & (time < known.to_datetime64())])
    minutes = (known.to_datetime64() - time[row]) / np.timedelta64(1, "m")
    return Reach(between.size, float(minutes), to_end=False)
