"""Compare several runs on the rows that all of them were tested on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.table import Table

from robust_fin.evaluation.intervals import DateBootstrap, DatedRows, Sums, column
from robust_fin.evaluation.multiple_testing import (
    DATES_PER_BLOCK,
    MIN_BLOCKS,
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
from robust_fin.market.labelling import product_of
from robust_fin.runtime.records import read_table

_ROW = ["time", "contract"]
_MIN_AGREEMENT = 0.95  # share of equal outcomes below which runs differ in bars or target
_MEASURED = ["score", "trivial", "target", "outcome"]


@dataclass(frozen=True, slots=True)
class RunSelection:
    """How much picking the best of several runs means.

    Attributes:
        names: of the runs.
        dates: number of trading dates that all of them were tested on.
        overfitting: of picking the run with the highest ICIR; None for too few dates.
        spa_test: of the best run's loss against that of the constant; None for too few dates.
    """

    names: tuple[str, ...]
    dates: int
    overfitting: PBO | None
    spa_test: SPATest | None


def daily_series(predictions: pd.DataFrame) -> pd.DataFrame:
    """Reduce a run to two numbers per trading date.

    Args:
        predictions: of a run; rows without outcome are left out.

    Returns:
        By trading date, without short dates: ic, the rank IC within the date (NaN if undefined),
        and gain, the mean Huber loss of the constant minus that of the net.
    """
    labelled = predictions[predictions["outcome"].notna()]
    net = labelled[labelled["model"] == NET]
    trivial = labelled.loc[labelled["model"] == CONSTANT, "score"].to_numpy(dtype=np.float64)
    rows = DatedRows.from_frame(net, trivial=trivial)
    score = net["score"].to_numpy(dtype=np.float64)
    sums = rows.sums(score)
    gain = (column(sums, "trivial") - column(sums, "loss")) / column(sums, "n")
    return pd.DataFrame({"ic": rows.daily_ic(score), "gain": gain}, index=pd.Index(rows.dates))


def read_tested_rows(run: Path) -> dict[str, Any]:
    """Return the products and the first and last date of a run's labelled test rows."""
    rows = read_table(
        run / "predictions.parquet",
        {"trading_date": "M", "contract": "", "outcome": "f"},
        only=True,
        filters=[("model", "==", "net")],
    )
    return describe_rows(rows[rows["outcome"].notna()])


def describe_rows(rows: pd.DataFrame) -> dict[str, Any]:
    """Return products, first and last trading date of rows, as the ledger writes them.

    Args:
        rows: with columns trading_date and contract.
    """
    dates = rows["trading_date"].to_numpy().astype("datetime64[D]")
    codes = (str(code) for code in rows["contract"].unique())
    return {
        "products": sorted({product_of(code) for code in codes}),
        "first": str(dates.min()),
        "last": str(dates.max()),
    }


def judge_selection(
    runs: Mapping[str, pd.DataFrame], *, draws: int = DRAWS, seed: int = 0
) -> RunSelection:
    """Judge the choice among runs, on the dates that all of them were tested on.

    A date on which a run has no rank IC counts as a rank IC of 0.

    Args:
        runs: `daily_series` of each run, by name.
        draws: bootstrap samples.
        seed: of the bootstrap.
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


def selection_sentences(selection: RunSelection) -> list[str]:
    """Describe the result in words, one line per test."""
    runs, overfitting, test = len(selection.names), selection.overfitting, selection.spa_test
    if overfitting is None or test is None:
        return [
            f"No PBO and no SPA: the {runs} runs share {selection.dates} trading dates, and "
            f"{MIN_BLOCKS * DATES_PER_BLOCK} are needed."
        ]
    if math.isnan(test.consistent):
        return [f"No PBO and no SPA: none of the {runs} runs differs from the constant."]
    chance = "no better than chance" if overfitting.probability >= 0.5 else "chance: 0.5"
    result = "better than the constant" if test.consistent < 0.05 else "not shown to beat it"
    return [
        f"Picking the best of these {runs} by ICIR: probability of backtest overfitting "
        f"{overfitting.probability:.2f}. This is the share of {overfitting.ways:,} ways to halve "
        f"{selection.dates} dates in which the best run on one half is below the median on the "
        f"other ({chance}).",
        f"The best of these {runs} by skill, {selection.names[test.best]}, is {result}: SPA test "
        f"against the constant p {_format_p(test.consistent)} (lower {test.lower:.3f}, upper "
        f"{test.upper:.3f}). Runs that were tried and are not listed here are not counted.",
    ]


def _format_p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


@dataclass(frozen=True, slots=True)
class RunComparison:
    """The nets of two runs, compared on the same rows and bootstrap samples.

    Attributes:
        rows: number of rows that both were tested on.
        dates: number of trading dates of these rows.
        first: metrics of the first net.
        second: metrics of the second net.
        difference: the first minus the second.
    """

    rows: int
    dates: int
    first: Significance
    second: Significance
    difference: PairedDifference


def compare_runs(
    first: pd.DataFrame, second: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0
) -> RunComparison | None:
    """Compare two nets on the rows with the same time, contract and outcome.

    The skill of each run is over its own constant, on its own rank target.

    Args:
        first: predictions table of a run.
        second: predictions table of another run.
        draws: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        None if they share no row, or if the same bars have other outcomes.
    """
    both = net_rows(first).merge(net_rows(second), on=_ROW, suffixes=("_first", "_second"))
    equal = both["outcome_first"] == both["outcome_second"]
    if both.empty or equal.mean() < _MIN_AGREEMENT:
        return None
    both = both[equal]
    (first_sums, short), (second_sums, _) = (_sums(both, name) for name in ("first", "second"))
    samples = date_bootstrap(first_sums, draws=draws, seed=seed)
    return RunComparison(
        rows=len(both),
        dates=len(first_sums),
        first=significance_from_sums(first_sums, samples, short_dates=short),
        second=significance_from_sums(second_sums, samples, short_dates=short),
        difference=paired_difference(first_sums, second_sums, samples),
    )


def net_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the net's labelled rows with the constant's forecast as column `trivial`.

    A row that several folds tested counts once, with the mean of their forecasts.
    """
    models = rows_by_model(predictions[predictions["outcome"].notna()])
    net = models[NET].assign(trivial=models[CONSTANT]["score"].to_numpy())
    net = net.astype({"contract": str, "score": np.float64, "trivial": np.float64})
    rows = net[[*_ROW, "trading_date", *_MEASURED]]
    if not rows.duplicated(_ROW).any():
        return rows
    return rows.groupby([*_ROW, "trading_date"], as_index=False)[_MEASURED].mean()


def _sums(both: pd.DataFrame, suffix: str) -> tuple[Sums, int]:
    """Return the sums per date of one run's net, and the number of short dates."""
    table = pd.DataFrame({name: both[f"{name}_{suffix}"] for name in _MEASURED})
    table = table.assign(trading_date=both["trading_date_first"])
    rows = DatedRows.from_frame(table, trivial=table["trivial"].to_numpy())
    return rows.sums(table["score"].to_numpy()), rows.short_dates


def comparison_tables(
    comparison: RunComparison | None, first: str, second: str
) -> list[Table | str]:
    """Tabulate a comparison for the console.

    Args:
        comparison: from `compare_runs`.
        first: name of the first run.
        second: name of the second run.
    """
    if comparison is None:
        return [f"{first} and {second} tested no rows in common: nothing can be paired."]
    title = (
        f"nets on the {comparison.rows:,} rows of {comparison.dates:,} trading dates that both "
        "runs tested, with 95 % intervals"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("", "skill", "rank IC"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, metrics in (
        (first, comparison.first),
        (second, comparison.second),
        (f"{first} vs {second}", comparison.difference),
    ):
        table.add_row(
            name, format_percent_interval(metrics.skill), format_interval(metrics.rank_ic)
        )
    return [table]
