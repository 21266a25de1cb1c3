"""Console output of a sweep: one line a job, the table, and what the best of many is worth."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.table import Table

from robust_fin.bundle.folder import read_provenance
from robust_fin.errors import BundleError
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.multiple_testing import (
    MIN_DATES,
    BBCResult,
    bbc_cv,
    expected_maximum,
    sample_std,
)
from robust_fin.evaluation.tables import judgement_tables
from robust_fin.evaluation.verdict import format_percent_interval
from robust_fin.ledger.record import find_ledger, summarize_trials
from robust_fin.ledger.trials import Trials
from robust_fin.runs.results import VAL_LOSSES
from robust_fin.runs.run import Run
from robust_fin.runtime.terminal import RESULT, Advance, progress_bar, progress_is_shown, show
from robust_fin.sweeps.job import SweepRecord
from robust_fin.sweeps.strategy import FINISHED, STATES, Outcome, Row
from robust_fin.sweeps.sweep import CSV, PARQUET, Sweep, chosen_row, in_order, skill_of, varied_keys


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best of several trials, and what it would be if all were equally good.

    Attributes:
        trials: how many were made.
        best: greatest figure among them.
        mean: of their figures.
        spread: of their figures; NaN for one.
    """

    trials: int
    best: float
    mean: float
    spread: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "BestOf":
        """Of the figures of all trials that have one; at least one must."""
        known = [one for one in figures if math.isfinite(one)]
        return cls(len(known), max(known), math.fsum(known) / len(known), sample_std(known))

    def luck(self, trials: int) -> float:
        """What the best of so many equal trials is expected to show; NaN where one was made.

        Args:
            trials: how many, with the mean and spread of these.
        """
        return self.mean + expected_maximum(trials, spread=self.spread)

    def words(self, *, counted: int | None) -> list[str]:
        """What the choice is worth, in sentences.

        Args:
            counted: trials on the same bars in the ledger, these among them; None where no ledger
                counts them.
        """
        said = f"val/skill of the best of {self.trials} finished trials is {_percent(self.best)}."
        if self.trials == 1:
            return [
                f"val/skill of the one finished trial is {_percent(self.best)}; it was picked from "
                "nothing, so there is nothing to deflate.",
                *self._ledger(counted),
            ]
        luck = self.luck(self.trials)
        times = expected_maximum(self.trials, spread=1.0)
        beyond = self.best - luck
        return [
            f"{said} Were all {self.trials} equally good, the best would be expected at "
            f"{_percent(luck)} by luck alone: their mean, {_percent(self.mean)}, and {times:.2f} "
            f"times their spread of {100 * self.spread:.4f} %. It is {100 * abs(beyond):.4f} % "
            f"{'beyond' if beyond > 0 else 'short of'} that.",
            *self._ledger(counted),
            "This takes the trials for independent, their val/skill for normal, and all of their "
            "spread for luck: where settings truly differ, luck is less; where trials were made "
            "that nobody counted, it is more.",
        ]

    def _ledger(self, counted: int | None) -> list[str]:
        if counted is None:
            return ["No trial ledger counts these trials: how many were made before is not known."]
        if self.trials == 1:
            return [f"The trial ledger counts {counted} on these bars."]
        luck = _percent(self.luck(max(1, counted)))
        return [f"After the {counted} that the trial ledger counts on these bars: {luck} by luck."]


def _percent(value: float) -> str:
    return f"{100 * value:+.4f} %"


_DAY = ["fold", "trading_date"]


def val_skill_by_date(losses: pd.DataFrame, member: int | None) -> pd.Series:
    """Share of its val/skill that a trial owes to each date; they add up to it.

    Args:
        losses: what val_losses.parquet holds.
        member: of a population; None for the net, or the mean forecast.

    Returns:
        By fold and trading date; empty where the member has none.
    """
    own = losses["member"].isna() if member is None else losses["member"] == member
    one = losses[own.fillna(False).astype(bool)].set_index(_DAY)
    trivial = one["loss_trivial"] * one["rows"]
    saved = trivial - one["loss"] * one["rows"]
    whole = trivial.groupby(level="fold").transform("sum")
    return saved / whole / one.index.get_level_values("fold").nunique()


def gains_of(rows: Sequence[Row]) -> Float[np.ndarray, "dates rows"]:
    """`val_skill_by_date` of trials, in the order of time within each fold.

    Raises:
        BundleError: one has none, or not on the dates of the first.
    """
    read: dict[Path, pd.DataFrame] = {}
    found: list[pd.Series] = []
    for row in rows:
        path = row.folder / VAL_LOSSES
        if path not in read:
            if not path.is_file():
                raise BundleError(f"job {row.number} left no {VAL_LOSSES}")
            read[path] = pd.read_parquet(path)
        one = val_skill_by_date(read[path], row.member)
        if found and not one.index.equals(found[0].index):
            raise BundleError(
                f"job {row.number} has other val dates than job {rows[0].number}, so they cannot "
                "be compared date by date"
            )
        found.append(one)
    return np.stack([one.to_numpy(dtype=np.float64) for one in found], axis=1)


def deflated_choice(rows: Sequence[Row], *, default_job: int | None) -> BBCResult | str:
    """The choice by val/skill, on dates that did not make it; else the reason why there is none.

    Args:
        rows: of the sweep; at least two have a val/skill.
        default_job: number of the job with the settings as they are; None where none has them.
    """
    known = [row for row in rows if np.isfinite(skill_of(row))]
    try:
        gains = gains_of(known)
    except BundleError as error:
        return str(error)
    if len(gains) < MIN_DATES:
        return f"val has {len(gains)} trading dates, and {MIN_DATES} are needed"
    numbers = [row.number for row in known]
    reference = numbers.index(default_job) if default_job in numbers else None
    return bbc_cv(gains, reference=reference)


def choice_words(found: BBCResult | str, *, default_job: int | None) -> list[str]:
    """What it says, in sentences.

    Args:
        found: see `deflated_choice`.
        default_job: likewise.
    """
    if isinstance(found, str):
        return [f"Not deflated by dates: {found}."]
    said = [
        f"Chosen on some of the {found.dates} val dates and measured on the others, the best of "
        f"{found.trials} has {format_percent_interval(found.deflated)} (BBC-CV; at least 95 %): "
        "so much is left of "
        f"its {100 * found.skill:+.4f} % without the dates that chose it."
    ]
    if found.difference is not None:
        said.append(
            f"Over job {default_job}, the default settings, it is "
            f"{format_percent_interval(found.difference)} on the same dates: "
            f"{_beyond(found.difference)}."
        )
    return said


def _beyond(apart: Interval) -> str:
    if apart.is_above(0):
        return "better than the default settings"
    if apart.is_below(0):
        return "worse than the default settings"
    return "not shown to be better than the default settings"


_MOST = 40  # rows in the printed table
_REASON = 60  # letters of a reason in it; sweep.csv has the whole


def job_line(outcome: Outcome, *, swept: Sequence[str], ended: int, total: int | None) -> str:
    """`job 3 finished, 4 of 12: optimizer.lr=0.01, val/skill +0.1200 %, 12 s`.

    Args:
        outcome: of the job.
        swept: keys that are shown; all where there are none.
        ended: jobs that have, this one among them.
        total: jobs in all; None where it is not known.
    """
    skill = outcome.metrics.get("val/skill")
    what = outcome.reason if outcome.state != FINISHED else f"val/skill {_skill(skill)}"
    of = "" if total is None else f" of {total}"
    settings = outcome.trial.settings
    shown = [f"{key}={settings[key]}" for key in swept if key in settings]
    said = " ".join(shown or outcome.trial.overrides)
    return (
        f"job {outcome.trial.number} {outcome.state}, {ended}{of}: {said}, {what}, "
        f"{outcome.seconds:.0f} s"
    )


@contextmanager
def jobs_shown(*, total: int | None, done: int) -> Iterator[Advance]:
    """A bar over the jobs with the time left, on a terminal.

    Args:
        total: jobs in all.
        done: of them before this start.
    """
    if total is None or not progress_is_shown():
        with nullcontext():
            yield lambda _: None
        return
    with progress_bar("jobs", total=total - done) as advance:
        yield advance


def rows_table(rows: Sequence[Row], *, swept: Sequence[str], title: str) -> Table:
    """The rows, the best first; what sweep.csv has beside is left out."""
    keys = varied_keys(rows, swept)
    table = Table(title=title, title_justify="left")
    members = any(row.member is not None for row in rows)
    left = ("job", *(["member"] if members else []), *keys)
    for name in (*left, "val/skill", "val/rank_ic", "seconds", "state"):
        table.add_column(name, justify="left" if name in (*keys, "state") else "right")
    for row in in_order(rows)[:_MOST]:
        place = [str(row.number), *([_member(row)] if members else [])]
        settings = [row.settings.get(key, "") for key in keys]
        ic = row.metrics.get("val/rank_ic")
        figures = [_skill(row.metrics.get("val/skill")), "" if ic is None else f"{ic:.4f}"]
        state = row.state if row.reason is None else f"{row.state}: {_short(row.reason)}"
        table.add_row(*place, *settings, *figures, f"{row.seconds:.0f}", state)
    return table


def tell(sweep: Sweep, *, over: bool) -> None:
    """The table, and what was chosen, with its test span, its verdict and where everything lies.

    Args:
        sweep: that has ended.
        over: False where it was stopped: then nothing is chosen yet, and no test span shown.
    """
    rows, folder = sweep.rows(), sweep.record.folder
    show(rows_table(rows, swept=sweep.swept, title=f"{_counted(rows)}, by val/skill"))
    if len(rows) > _MOST:
        show(f"{len(rows) - _MOST} more rows are in {folder / CSV}")
    chosen = chosen_row(rows) if over else None
    if chosen is not None:
        _tell_choice(rows, chosen, default_job=sweep.strategy.default_job())
    elif over:
        show(_nothing_chosen(rows))
    show(f"table        {folder / CSV}", f"             {folder / PARQUET}")
    show(f"TensorBoard  tensorboard --logdir {folder}")


def _tell_choice(rows: Sequence[Row], chosen: Row, *, default_job: int | None) -> None:
    run = Run.open(chosen.folder)
    best = BestOf.of([skill_of(row) for row in rows])
    name = f"job {chosen.number}{'' if chosen.member is None else f', member {_member(chosen)}'}"
    show(f"Chosen by val/skill: {name}, {chosen.folder}")
    if best.trials > 1:
        deflated = deflated_choice(rows, default_job=default_job)
        show(*choice_words(deflated, default_job=default_job))
    show(*best.words(counted=_counted_trials(run)))
    if chosen.member is None:
        show(*judgement_tables(run.judgement), summarize_trials(chosen.folder))
        show(run.verdict, level=RESULT)
    else:
        show(*_member_lines(chosen))
    show(f"run folder   {chosen.folder}", f"report       {run.report}")


def _member_lines(chosen: Row) -> list[str]:
    """A member's test figures have no intervals: only the mean forecast's rows are kept."""
    figures = ("test/skill", "test/rank_ic")
    said = [f"{name} {chosen.metrics[name]:.6g}" for name in figures if chosen.metrics.get(name)]
    return [
        f"On test it has {', '.join(said) or 'no figures'}, without an interval. Train it alone "
        "for a verdict: its settings are in the table"
    ]


def _counted_trials(run: Run) -> int | None:
    """Trials on the same bars in the ledger; None where there is none."""
    ledger = find_ledger(run.folder)
    if ledger is None or not ledger.is_file():
        return None
    known = Trials.read(ledger).same_data(read_provenance(run.folder)["data_sha256"])
    return known.count()


def _nothing_chosen(rows: Sequence[Row]) -> str:
    if any(row.state == FINISHED for row in rows):
        return (
            "Nothing is chosen: no trial has a val/skill. With split.val_fraction=0.1 each has one."
        )
    return "Nothing is chosen: no trial has finished."


def _counted(rows: Sequence[Row]) -> str:
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    said = [f"{count} {state}" for state, count in counts.items() if count]
    return f"{len(rows)} trials ({', '.join(said) or 'none'})"


def stopped_words(record: SweepRecord) -> str:
    """How to go on."""
    return f"stopped; python -m robust_fin.train sweep.resume={record.folder} goes on"


def _skill(value: float | int | None) -> str:
    return "null" if value is None or not math.isfinite(value) else f"{100 * value:+.4f} %"


def _short(reason: str) -> str:
    return textwrap.shorten(reason, _REASON, placeholder=" ...")


def _member(row: Row) -> str:
    return "" if row.member is None else str(row.member)
