"""Two runs on the rows that both were tested on."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.table import Table

from robust_fin.evaluation.cells import percent, plain
from robust_fin.evaluation.date_sums import DatedRows, Sums
from robust_fin.evaluation.significance import (
    CONSTANT,
    DRAWS,
    NET,
    Comparison,
    Significance,
    date_draws,
    figures_of,
    less,
    models_of,
)

_ROW = ["time", "contract"]
_AGREEING = 0.95  # share of outcomes below which the runs are not of the same bars and target
_MEASURED = ["score", "trivial", "target", "outcome"]


@dataclass(frozen=True, slots=True)
class Pairing:
    """The nets of two runs on the same rows and samples of dates.

    Attributes:
        rows: that both were tested on.
        dates: trading dates of these rows.
        first: what the net of the one carries on them.
        second: what that of the other does.
        apart: the first less the second.
    """

    rows: int
    dates: int
    first: Significance
    second: Significance
    apart: Comparison


def paired(
    first: pd.DataFrame, second: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0
) -> Pairing | None:
    """Compare two nets on the rows of the same time, contract and outcome.

    Skill is that of each run over its own constant, on its own rank target.

    Args:
        first: predictions table of a run.
        second: of another.
        draws: bootstrap samples.
        seed: of the resampling.

    Returns:
        None where they share no row, or the same bars have other outcomes.
    """
    both = net_rows(first).merge(net_rows(second), on=_ROW, suffixes=("_first", "_second"))
    alike = both["outcome_first"] == both["outcome_second"]
    if both.empty or alike.mean() < _AGREEING:
        return None
    both = both[alike]
    one, other = (_sums(both, which) for which in ("first", "second"))
    samples = date_draws(one, draws=draws, seed=seed)
    return Pairing(
        rows=len(both),
        dates=len(one),
        first=figures_of(one, samples),
        second=figures_of(other, samples),
        apart=less(one, other, samples),
    )


def net_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    """The net's labelled rows beside the constant's forecast.

    A row that several folds tested counts once, with the mean of their forecasts.
    """
    models = models_of(predictions[predictions["outcome"].notna()])
    net = models[NET].assign(trivial=models[CONSTANT]["score"].to_numpy())
    net = net.astype({"contract": str, "score": np.float64, "trivial": np.float64})
    kept = net[[*_ROW, "trading_date", *_MEASURED]]
    if not kept.duplicated(_ROW).any():
        return kept
    return kept.groupby([*_ROW, "trading_date"], as_index=False)[_MEASURED].mean()


def _sums(both: pd.DataFrame, which: str) -> Sums:
    own = pd.DataFrame({name: both[f"{name}_{which}"] for name in _MEASURED})
    own = own.assign(trading_date=both["trading_date_first"])
    rows = DatedRows.of(own, trivial=own["trivial"].to_numpy())
    return rows.sums(own["score"].to_numpy())


def pairing_tables(found: Pairing | None, first: str, second: str) -> list[Table | str]:
    """What the keyboard shows of a comparison.

    Args:
        found: see `paired`.
        first: name of the one run.
        second: of the other.
    """
    if found is None:
        return [f"{first} and {second} tested no rows in common: nothing can be paired."]
    title = (
        f"nets on the {found.rows:,} rows of {found.dates:,} trading dates that both runs "
        "tested, with 95 % intervals"
    )
    table = Table(title=title, title_justify="left")
    for column in ("", "skill", "rank IC"):
        table.add_column(column, justify="right" if column else "left")
    apart = f"{first} less {second}"
    for name, one in ((first, found.first), (second, found.second), (apart, found.apart)):
        table.add_row(name, percent(one.skill), plain(one.rank_ic))
    return [table]
