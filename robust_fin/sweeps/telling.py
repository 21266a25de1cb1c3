"""What a sweep says at the keyboard: a line a job, and at the end the table and the choice."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from rich.table import Table

from robust_fin.bundle import read_config, read_provenance
from robust_fin.evaluation.console import RESULT, judgement_tables, show
from robust_fin.progress import Advance, is_watched, shown_progress
from robust_fin.run import Run
from robust_fin.sweeps.deflation import choice_words, deflated_choice
from robust_fin.sweeps.luck import BestOf
from robust_fin.sweeps.record import SweepRecord
from robust_fin.sweeps.sweep import Sweep
from robust_fin.sweeps.table import CSV, PARQUET, chosen_row, in_order, skill_of, varied_keys
from robust_fin.sweeps.trial import FINISHED, STATES, Outcome, Row
from robust_fin.trials import Trials, deflated_words, ledger_of

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
    if total is None or not is_watched():
        with nullcontext():
            yield lambda _: None
        return
    with shown_progress("jobs", total=total - done) as advance:
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
    run = Run.of(chosen.folder)
    best = BestOf.of([skill_of(row) for row in rows])
    name = f"job {chosen.number}{'' if chosen.member is None else f', member {_member(chosen)}'}"
    show(f"Chosen by val/skill: {name}, {chosen.folder}")
    if best.trials > 1:
        deflated = deflated_choice(rows, default_job=default_job)
        show(*choice_words(deflated, default_job=default_job))
    show(*best.words(counted=_counted_trials(run)))
    if chosen.member is None:
        show(*judgement_tables(run.judgement), deflated_words(chosen.folder))
        show(run.verdict, loudness=RESULT)
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
    ledger = ledger_of(run.folder, read_config(run.folder))
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
