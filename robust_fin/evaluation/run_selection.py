"""Several runs compared on the rows that all of them were tested on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.table import Table

from robust_fin.evaluation.intervals import DateBootstrap, DatedRows, Sums, column
from robust_fin.evaluation.multiple_testing import (
    DATES_A_BLOCK,
    LEAST_BLOCKS,
    PBO,
    SPATest,
    pbo,
    pbo_block_count,
    spa_test,
)
from robust_fin.evaluation.significance import (
    CONSTANT,
    DRAWS,
    NET,
    PairedDifference,
    Significance,
    date_bootstrap,
    paired_difference,
    rows_by_model,
    significance_from_sums,
)
from robust_fin.evaluation.verdict import format_interval, format_percent_interval

LEAST_DATES = LEAST_BLOCKS * DATES_A_BLOCK


@dataclass(frozen=True, slots=True)
class RunSelection:
    """What choosing among runs means.

    Attributes:
        names: of the runs.
        dates: trading dates that all of them were tested on.
        overfitting: of picking the run with the greatest ICIR; None where the dates are too few.
        superiority: of the best run's loss over that of the constant; likewise.
    """

    names: tuple[str, ...]
    dates: int
    overfitting: PBO | None
    spa_test: SPATest | None


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
    rows, score = (
        DatedRows.from_frame(net, trivial=trivial),
        net["score"].to_numpy(dtype=np.float64),
    )
    sums = rows.sums(score)
    gain = (column(sums, "trivial") - column(sums, "loss")) / column(sums, "n")
    return pd.DataFrame({"ic": rows.daily_ic(score), "gain": gain}, index=pd.Index(rows.dates))


def judge_selection(
    runs: Mapping[str, pd.DataFrame], *, draws: int = DRAWS, seed: int = 0
) -> RunSelection:
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
    blocks = pbo_block_count(len(shared))
    if blocks is None:
        return RunSelection(tuple(runs), len(shared), None, None)
    samples = DateBootstrap.for_series(*gains.T, draws=draws, seed=seed)
    return RunSelection(
        tuple(runs),
        len(shared),
        pbo(np.nan_to_num(ic, nan=0.0), blocks=blocks),
        spa_test(gains, weights=samples.weights, block=samples.block),
    )


def _matrix(shared: pd.DataFrame, name: str) -> Float[np.ndarray, "dates runs"]:
    return shared.xs(name, axis=1, level=1).to_numpy(dtype=np.float64)


def selection_sentences(found: RunSelection) -> list[str]:
    """What it says, one line a test."""
    runs = len(found.names)
    if found.overfitting is None or found.spa_test is None:
        return [
            f"No PBO and no SPA: the {runs} runs share {found.dates} trading dates, needed are "
            f"{LEAST_DATES}."
        ]
    fitted, test = found.overfitting, found.spa_test
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
class RunComparison:
    """The nets of two runs on the same rows and samples of dates.

    Attributes:
        rows: that both were tested on.
        dates: trading dates of these rows.
        first: what the net of the one carries on them.
        second: what that of the other does.
        difference: the first less the second.
    """

    rows: int
    dates: int
    first: Significance
    second: Significance
    difference: PairedDifference


def compare_runs(
    first: pd.DataFrame, second: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0
) -> RunComparison | None:
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
    samples = date_bootstrap(one, draws=draws, seed=seed)
    return RunComparison(
        rows=len(both),
        dates=len(one),
        first=significance_from_sums(one, samples),
        second=significance_from_sums(other, samples),
        difference=paired_difference(one, other, samples),
    )


def net_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    """The net's labelled rows beside the constant's forecast.

    A row that several folds tested counts once, with the mean of their forecasts.
    """
    models = rows_by_model(predictions[predictions["outcome"].notna()])
    net = models[NET].assign(trivial=models[CONSTANT]["score"].to_numpy())
    net = net.astype({"contract": str, "score": np.float64, "trivial": np.float64})
    kept = net[[*_ROW, "trading_date", *_MEASURED]]
    if not kept.duplicated(_ROW).any():
        return kept
    return kept.groupby([*_ROW, "trading_date"], as_index=False)[_MEASURED].mean()


def _sums(both: pd.DataFrame, which: str) -> Sums:
    own = pd.DataFrame({name: both[f"{name}_{which}"] for name in _MEASURED})
    own = own.assign(trading_date=both["trading_date_first"])
    rows = DatedRows.from_frame(own, trivial=own["trivial"].to_numpy())
    return rows.sums(own["score"].to_numpy())


def comparison_tables(found: RunComparison | None, first: str, second: str) -> list[Table | str]:
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
    for name, one in ((first, found.first), (second, found.second), (apart, found.difference)):
        table.add_row(name, format_percent_interval(one.skill), format_interval(one.rank_ic))
    return [table]
