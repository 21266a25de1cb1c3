"""Console output of a sweep: a line per job, the table, and how much of the best result is luck."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.table import Table

from robust_fin.errors import BundleError
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.multiple_testing import (
    MIN_DATES,
    BBCResult,
    bbc_cv,
    expected_maximum,
    robust_std,
)
from robust_fin.evaluation.tables import judgement_tables
from robust_fin.evaluation.verdict import format_percent_interval
from robust_fin.ledger.record import count_trials, summarize_trials
from robust_fin.runs.results import VAL_LOSSES, publish
from robust_fin.runs.run import Run
from robust_fin.runtime.records import read_table
from robust_fin.runtime.terminal import (
    RESULT,
    Advance,
    progress_bar,
    progress_is_shown,
    show,
    tensorboard_hint,
)
from robust_fin.sweeps.strategy import FINISHED, STATES, Outcome, Row
from robust_fin.sweeps.sweep import CSV, PARQUET, Sweep, best_row, sort_rows, val_skill, varied_keys

SHOWN_IN_SWEEP = ".chosen"  # in the run folder whose test span TensorBoard shows
_MAX_ROWS = 40  # of the printed table
_MAX_REASON = 60  # characters of a reason in the printed table


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best of several trials, and the best to expect if all were equally good.

    Attributes:
        trials: number of trials with a figure.
        best: largest figure.
        mean: of the figures.
        spread: `robust_std` of the figures; NaN for a single trial.
    """

    trials: int
    best: float
    mean: float
    spread: float

    @classmethod
    def from_figures(cls, figures: Sequence[float]) -> "BestOf":
        """Summarise the figures of the trials; at least one must be finite."""
        known = [value for value in figures if math.isfinite(value)]
        return cls(len(known), max(known), math.fsum(known) / len(known), robust_std(known))

    def expected_best(self, trials: int) -> float:
        """Return the expected best of `trials` equal trials with this mean and spread."""
        return self.mean + expected_maximum(trials, spread=self.spread)

    def sentences(self, *, ledger_trials: int | None) -> list[str]:
        """Describe in sentences how much of the best figure is luck.

        Args:
            ledger_trials: number of trials on the same bars in the ledger, these included; None
                without a ledger.
        """
        if self.trials == 1:
            return [
                f"val/skill of the only finished trial is {_percent(self.best)}. There was no "
                "choice, so there is no luck to subtract.",
                *self._ledger_sentence(ledger_trials),
            ]
        expected = self.expected_best(self.trials)
        factor = expected_maximum(self.trials, spread=1.0)
        excess = self.best - expected
        return [
            f"val/skill of the best of {self.trials} finished trials is {_percent(self.best)}. If "
            f"all {self.trials} were equally good, the best would be expected at "
            f"{_percent(expected)} by luck alone: their mean, {_percent(self.mean)}, plus "
            f"{factor:.2f} times their robust standard deviation of {100 * self.spread:.4f} %. The "
            f"best is {100 * abs(excess):.4f} % {'above' if excess > 0 else 'below'} that.",
            *self._ledger_sentence(ledger_trials),
            "This assumes independent trials, normally distributed val/skill, and that all of the "
            "spread is luck. If settings truly differ, luck is less; if trials were not counted, "
            "it is more.",
        ]

    def _ledger_sentence(self, count: int | None) -> list[str]:
        if count is None:
            return [
                "No trial ledger counts these trials, so the number of earlier ones is unknown."
            ]
        if self.trials == 1:
            return [f"The trial ledger counts {count} on these bars."]
        luck = _percent(self.expected_best(max(1, count)))
        return [f"With the {count} trials that the ledger counts on these bars: {luck} by luck."]


def _percent(value: float | int | None) -> str:
    return "null" if value is None or not math.isfinite(value) else f"{100 * value:+.4f} %"


def val_skill_by_date(losses: pd.DataFrame, member: int | None) -> pd.Series:
    """Return each date's share of val/skill; the shares sum to val/skill.

    Args:
        losses: content of val_losses.parquet.
        member: of a population; None for the net or the mean forecast.

    Returns:
        By fold and trading date; empty if the member has no losses.
    """
    selected = losses["member"].isna() if member is None else losses["member"] == member
    rows = losses[selected.fillna(False).astype(bool)].set_index(["fold", "trading_date"])
    trivial = rows["loss_trivial"] * rows["rows"]
    saved = trivial - rows["loss"] * rows["rows"]
    total = trivial.groupby(level="fold").transform("sum")
    return saved / total / rows.index.get_level_values("fold").nunique()


_LOSSES = {"fold": "i", "member": "", "trading_date": "M", "loss": "f", "loss_trivial": "f"}


def read_gains(rows: Sequence[Row]) -> Float[np.ndarray, "dates rows"]:
    """Read `val_skill_by_date` of all rows, ordered by fold and date.

    Raises:
        BundleError: a row has no val losses, or other dates than the first row.
    """
    losses: dict[Path, pd.DataFrame] = {}
    gains: list[pd.Series] = []
    for row in rows:
        path = row.folder / VAL_LOSSES
        if path not in losses:
            if not path.is_file():
                raise BundleError(f"job {row.number} has no {VAL_LOSSES}")
            losses[path] = read_table(path, _LOSSES)
        gains.append(val_skill_by_date(losses[path], row.member))
        if not gains[-1].index.equals(gains[0].index):
            raise BundleError(
                f"the val dates of job {row.number} differ from those of job {rows[0].number}, so "
                "they cannot be compared date by date"
            )
    return np.stack([series.to_numpy(dtype=np.float64) for series in gains], axis=1)


def deflated_choice(rows: Sequence[Row], *, default_job: int | None) -> BBCResult | str:
    """Measure the choice by val/skill on dates not used for it; a reason if that is impossible.

    Args:
        rows: of the sweep; at least two have a val/skill.
        default_job: number of the job with the default settings, if any.
    """
    known = [row for row in rows if math.isfinite(val_skill(row))]
    try:
        gains = read_gains(known)
    except BundleError as error:
        return str(error)
    if len(gains) < MIN_DATES:
        return f"val has {len(gains)} trading dates, but {MIN_DATES} are needed"
    numbers = [row.number for row in known]
    reference = numbers.index(default_job) if default_job in numbers else None
    return bbc_cv(gains, reference=reference)


def choice_sentences(result: BBCResult | str, *, default_job: int | None) -> list[str]:
    """Describe the result of `deflated_choice` in sentences."""
    if isinstance(result, str):
        return [f"The choice is not deflated by dates: {result}."]
    sentences = [
        f"Chosen on some of the {result.dates} val dates and measured on the others, the best of "
        f"{result.trials} has {format_percent_interval(result.deflated)} (BBC-CV; at least 95 %). "
        f"Its {100 * result.skill:+.4f} % includes the dates that chose it."
    ]
    if result.difference is not None:
        sentences.append(
            "The difference from the default settings (job "
            f"{default_job}) is {format_percent_interval(result.difference)} on the same dates: "
            f"{_compare(result.difference)} than the default settings."
        )
    return sentences


def _compare(difference: Interval) -> str:
    if difference.is_above(0):
        return "better"
    return "worse" if difference.is_below(0) else "not shown to be better"


def job_line(outcome: Outcome, *, swept: Sequence[str], ended: int, total: int | None) -> str:
    """Format `job 3 finished, 4 of 12: optimizer.lr=0.01, val/skill +0.1200 %, 12 s`.

    Args:
        outcome: of the job.
        swept: keys to show; all overrides if empty.
        ended: number of ended jobs, including this one.
        total: number of jobs, if known.
    """
    skill = _percent(outcome.metrics.get("val/skill"))
    result = outcome.reason if outcome.state != FINISHED else f"val/skill {skill}"
    of_total = "" if total is None else f" of {total}"
    settings = outcome.trial.settings
    shown = [f"{key}={settings[key]}" for key in swept if key in settings]
    return (
        f"job {outcome.trial.number} {outcome.state}, {ended}{of_total}: "
        f"{' '.join(shown or outcome.trial.overrides)}, {result}, {outcome.seconds:.0f} s"
    )


@contextmanager
def job_progress(*, total: int | None, done: int) -> Iterator[Advance]:
    """Show a progress bar over the jobs, if this is a terminal.

    Args:
        total: number of jobs, if known.
        done: number of jobs that ended before this start.
    """
    if total is None or not progress_is_shown():
        yield lambda _: None
        return
    with progress_bar("jobs", total=total - done) as advance:
        yield advance


def rows_table(rows: Sequence[Row], *, swept: Sequence[str], title: str) -> Table:
    """Return the best rows as a console table; sweep.csv has more columns."""
    keys = varied_keys(rows, swept)
    table = Table(title=title, title_justify="left")
    member = ["member"] if any(row.member is not None for row in rows) else []
    for name in ("job", *member, *keys, "val/skill", "val/rank_ic", "seconds", "state"):
        table.add_column(name, justify="left" if name in (*keys, "state") else "right")
    for row in sort_rows(rows)[:_MAX_ROWS]:
        skill, ic = row.metrics.get("val/skill"), row.metrics.get("val/rank_ic")
        reason = textwrap.shorten(row.reason or "", _MAX_REASON, placeholder=" ...")
        table.add_row(
            str(row.number),
            *["" if row.member is None else str(row.member) for _ in member],
            *[row.settings.get(key, "") for key in keys],
            _percent(skill),
            "" if ic is None else f"{ic:.4f}",
            f"{row.seconds:.0f}",
            row.state if row.reason is None else f"{row.state}: {reason}",
        )
    return table


def show_summary(sweep: Sweep, *, complete: bool) -> None:
    """Show the table, the chosen trial with its test results, and the paths of the files.

    Args:
        sweep: that has ended.
        complete: False if it was stopped; then no trial is chosen and no test figure is shown.
    """
    rows, folder = sweep.rows(), sweep.record.folder
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    title = f"{len(rows)} trials ({states or 'none'}), by val/skill"
    show(rows_table(rows, swept=sweep.swept, title=title))
    if len(rows) > _MAX_ROWS:
        show(f"{len(rows) - _MAX_ROWS} more rows are in {folder / CSV}")
    chosen = best_row(rows) if complete else None
    if chosen is not None:
        _show_choice(rows, chosen, default_job=sweep.strategy.default_job())
    elif complete and counts[FINISHED]:
        show("No trial is chosen: none has a val/skill. Set split.val_fraction=0.1")
    elif complete:
        show("No trial is chosen: none has finished.")
    show(f"table        {folder / CSV}", f"             {folder / PARQUET}")
    show(f"TensorBoard  {tensorboard_hint(folder)}")


def _show_choice(rows: Sequence[Row], chosen: Row, *, default_job: int | None) -> None:
    run = Run.open(chosen.folder)
    best = BestOf.from_figures([val_skill(row) for row in rows])
    member = "" if chosen.member is None else f", member {chosen.member}"
    show(f"Chosen by val/skill: job {chosen.number}{member}, {chosen.folder}")
    if best.trials > 1:
        result = deflated_choice(rows, default_job=default_job)
        show(*choice_sentences(result, default_job=default_job))
    show(*best.sentences(ledger_trials=count_trials(run.folder)))
    _publish_choice(rows, run)
    if chosen.member is None:
        show(*judgement_tables(run.judgement), summarize_trials(chosen.folder))
        show(run.verdict, level=RESULT)
    else:
        known = {name: chosen.metrics.get(name) for name in ("test/skill", "test/rank_ic")}
        figures = ", ".join(f"{name} {value:.6g}" for name, value in known.items() if value)
        show(
            f"Its test figures, without an interval: {figures or 'none'}. For a verdict, train it "
            "alone with the settings in the table"
        )
    show(f"run folder   {chosen.folder}", f"report       {run.report}")


def _publish_choice(rows: Sequence[Row], run: Run) -> None:
    """Add the test span to the TensorBoard folder of the chosen run, and to no other.

    A sweep that was complete before may have chosen another run.
    """
    shown = {row.folder for row in rows if (row.folder / SHOWN_IN_SWEEP).is_file()}
    for folder in sorted({run.folder, *shown}):
        one = Run.open(folder)
        publish(
            folder,
            one.predictions,
            one.judgement,
            metrics=one.metrics,
            pictures=bool(one.config.report.pictures),
        )
        (folder / SHOWN_IN_SWEEP).unlink(missing_ok=True)
    (run.folder / SHOWN_IN_SWEEP).touch()
