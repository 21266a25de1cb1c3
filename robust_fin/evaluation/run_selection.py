"""Several runs compared on the rows that all of them were tested on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.table import Table

from robust_fin.evaluation.intervals import DateDraws, DatedRows, Sums, column
from robust_fin.evaluation.multiple_testing import (
    DATES_A_BLOCK,
    LEAST_BLOCKS,
    Overfitting,
    Superiority,
    backtest_overfitting,
    fitting_blocks,
    superiority,
)
from robust_fin.evaluation.significance import (
    CONSTANT,
    DRAWS,
    NET,
    PairedDifference,
    Significance,
    date_draws,
    figures_of,
    less,
    models_of,
)
from robust_fin.evaluation.verdict import percent, plain

LEAST_DATES = LEAST_BLOCKS * DATES_A_BLOCK


@dataclass(frozen=True, slots=True)
class Contest:
    """What choosing among runs means.

    Attributes:
        names: of the runs.
        dates: trading dates that all of them were tested on.
        overfitting: of picking the run with the greatest ICIR; None where the dates are too few.
        superiority: of the best run's loss over that of the constant; likewise.
    """

    names: tuple[str, ...]
    dates: int
    overfitting: Overfitting | None
    superiority: Superiority | None


def daily_series(predictions: pd.DataFrame) -> pd.DataFrame:
    """A run in two numbers a trading date.

    Args:
        predictions: the table of a run; rows whose outcome is not known yet are left out.

    Returns:
        By trading date: ic, the rank IC within the date (NaN where it has none), and gain, the
        mean Huber loss of the constant less that of the net.
    """
    known = predictions[predictions["outcome"].notna()]
    net = known[known["model"] == NET]
    trivial = known.loc[known["model"] == CONSTANT, "score"].to_numpy(dtype=np.float64)
    rows, score = DatedRows.of(net, trivial=trivial), net["score"].to_numpy(dtype=np.float64)
    sums = rows.sums(score)
    gain = (column(sums, "trivial") - column(sums, "loss")) / column(sums, "n")
    return pd.DataFrame({"ic": rows.daily_ic(score), "gain": gain}, index=pd.Index(rows.dates))


def contest(runs: Mapping[str, pd.DataFrame], *, draws: int = DRAWS, seed: int = 0) -> Contest:
    """Judge the choice among some runs, on the dates that all of them were tested on.

    A date on which a run ranks nothing counts as a rank IC of 0.

    Args:
        runs: `daily_series` of each, by name.
        draws: bootstrap samples.
        seed: of the resampling.
    """
    assert len(runs) > 1
    shared = pd.concat(list(runs.values()), axis=1, keys=list(runs), join="inner")
    ic, gains = _matrix(shared, "ic"), _matrix(shared, "gain")
    blocks = fitting_blocks(len(shared))
    if blocks is None:
        return Contest(tuple(runs), len(shared), None, None)
    samples = DateDraws.of(*gains.T, draws=draws, seed=seed)
    return Contest(
        tuple(runs),
        len(shared),
        backtest_overfitting(np.nan_to_num(ic, nan=0.0), blocks=blocks),
        superiority(gains, weights=samples.weights, block=samples.block),
    )


def _matrix(shared: pd.DataFrame, name: str) -> Float[np.ndarray, "dates runs"]:
    return shared.xs(name, axis=1, level=1).to_numpy(dtype=np.float64)


def contest_words(found: Contest) -> list[str]:
    """What it says, one line a test."""
    runs = len(found.names)
    if found.overfitting is None or found.superiority is None:
        return [
            f"No PBO and no SPA: the {runs} runs share {found.dates} trading dates, needed are "
            f"{LEAST_DATES}."
        ]
    fitted, test = found.overfitting, found.superiority
    if math.isnan(test.consistent):
        return [f"No PBO and no SPA: none of the {runs} runs differs from the constant."]
    chance = "no better than drawing lots" if fitted.probability >= 0.5 else "0.5 is drawing lots"
    said = "better than the constant" if test.consistent < 0.05 else "not shown to beat it"
    return [
        f"Picking the best of these {runs} by ICIR: probability of backtest overfitting "
        f"{fitted.probability:.2f}, the share of {fitted.ways:,} ways to halve {found.dates} dates "
        f"in which the best on one half is below the median on the other ({chance}).",
        f"The best of these {runs} by skill, {found.names[test.best]}, is {said}: SPA test against "
        f"the constant p {_small(test.consistent)} (lower {test.lower:.3f}, upper "
        f"{test.upper:.3f}); runs that were tried and are not listed here are not counted.",
    ]


def _small(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


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
    apart: PairedDifference


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
    for heading in ("", "skill", "rank IC"):
        table.add_column(heading, justify="right" if heading else "left")
    apart = f"{first} less {second}"
    for name, one in ((first, found.first), (second, found.second), (apart, found.apart)):
        table.add_row(name, percent(one.skill), plain(one.rank_ic))
    return [table]
