"""The sentences on the best of a sweep: how much of it is luck, and its value on other dates."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from robust_fin.errors import BundleError
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.multiple_testing import BBCResult
from robust_fin.sweeps.strategy import FAILED, FINISHED, Row
from robust_fin.sweeps.sweep_summary import (
    BestOf,
    choice_sentences,
    deflated_choice,
    read_gains,
    val_skill_by_date,
)

SKILLS = [0.001, 0.002, 0.003, 0.004]
DATES = pd.date_range("2024-01-08", periods=8)


def test_the_expected_best_of_four_equals_the_closed_form() -> None:
    best = BestOf.from_figures([*SKILLS, float("nan")])
    assert (best.trials, best.best) == (4, 0.004)
    assert best.mean == pytest.approx(0.0025)
    assert best.spread == pytest.approx(1.363 * 1.4826 * 0.001, rel=1e-4)
    # 0.57722 is Euler's constant; the quantiles are those of 1 - 1/4 and 1 - 1/(4 e)
    expected = (1 - 0.5772156649) * 0.6744897502 + 0.5772156649 * norm.ppf(1 - 0.0919698603)
    assert best.expected_best(4) == pytest.approx(0.0025 + expected * best.spread, rel=1e-9)
    assert best.expected_best(1) == best.mean


@pytest.mark.parametrize("trials", [3, 12, 60])
def test_the_expected_best_is_the_mean_maximum_of_equal_trials(trials: int) -> None:
    draws = np.random.default_rng(0).normal(0.01, 0.002, (20_000, trials))
    best = BestOf(trials=trials, best=0.0, mean=0.01, spread=0.002)
    assert best.expected_best(trials) == pytest.approx(draws.max(axis=1).mean(), abs=0.002 * 0.05)


def test_the_sentences_state_both_counts_and_the_assumptions() -> None:
    first, ledger, assumptions = BestOf.from_figures(SKILLS).sentences(ledger_trials=31)
    assert first == (
        "val/skill of the best of 4 finished trials is +0.4000 %. If all 4 were equally good, the "
        "best would be expected at +0.4626 % by luck alone: their mean, +0.2500 %, plus 1.05 times "
        "their robust standard deviation of 0.2021 %. The best is 0.0626 % below that."
    )
    assert ledger == "With the 31 trials that the ledger counts on these bars: +0.6717 % by luck."
    assert assumptions.startswith("This assumes independent trials, normally distributed val/skill")


def test_a_best_below_luck_is_reported_as_below() -> None:
    best = BestOf.from_figures([0.001, 0.002, 0.002, 0.002])
    first, ledger, _ = best.sentences(ledger_trials=None)
    assert first.endswith("% below that.")
    assert ledger.startswith("No trial ledger counts these trials")


def test_a_single_trial_has_no_luck_to_subtract() -> None:
    first, *rest = BestOf.from_figures([0.001]).sentences(ledger_trials=3)
    assert first.startswith(
        "val/skill of the only finished trial is +0.1000 %. There was no choice"
    )
    assert rest == ["The trial ledger counts 3 on these bars."]


def losses(shares: np.ndarray, *, fold: int = 0, member: int | None = None) -> pd.DataFrame:
    """Return val losses that are these shares of the constant's loss on each date."""
    rows, trivial = np.arange(1, len(shares) + 1), np.linspace(0.01, 0.02, len(shares))
    return pd.DataFrame(
        {
            "fold": np.int32(fold),
            "member": pd.array([member] * len(shares), dtype="Int32"),
            "trading_date": DATES[: len(shares)] + pd.Timedelta(days=30 * fold),
            "rows": rows,
            "loss": shares * trivial,
            "loss_trivial": trivial,
        }
    )


def skill(frame: pd.DataFrame) -> float:
    total = (frame["rows"] * frame["loss_trivial"]).sum()
    return float(1 - (frame["rows"] * frame["loss"]).sum() / total)


def row(folder: Path, number: int, value: float | None) -> Row:
    state = FAILED if value is None else FINISHED
    metrics = {} if value is None else {"val/skill": value}
    return Row(number, None, state, None, {}, "", metrics, 1.0, folder)


def equal_trials(folder: Path, count: int, *, dates: int = 8) -> list[Row]:
    """Write trials that differ by chance only, except the third: 5 % better on every date."""
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        frame = losses(1 - 0.01 * rng.normal(size=dates) - 0.05 * (number == 2))
        run = folder / str(number)
        run.mkdir(parents=True)
        frame.to_parquet(run / "val_losses.parquet")
        rows.append(row(run, number, skill(frame)))
    return rows


def test_the_shares_of_the_dates_sum_to_val_skill() -> None:
    rng = np.random.default_rng(0)
    first, second = losses(1 - 0.1 * rng.random(8)), losses(1 - 0.1 * rng.random(5), fold=1)
    assert val_skill_by_date(first, None).sum() == pytest.approx(skill(first))
    both = val_skill_by_date(pd.concat([first, second]), None)
    assert both.sum() == pytest.approx((skill(first) + skill(second)) / 2)
    assert list(both.index.names) == ["fold", "trading_date"]


def test_the_shares_of_a_member_are_separate_from_those_of_the_net() -> None:
    both = pd.concat([losses(np.full(8, 0.9)), losses(np.full(8, 0.8), member=3)])
    assert val_skill_by_date(both, None).sum() == pytest.approx(0.1)
    assert val_skill_by_date(both, 3).sum() == pytest.approx(0.2)
    assert val_skill_by_date(both, 1).empty


def test_the_choice_is_that_of_the_table_and_is_compared_with_the_default(tmp_path: Path) -> None:
    rows = [*equal_trials(tmp_path, 6), row(tmp_path, 6, None)]
    result = deflated_choice(rows, default_job=0)
    assert isinstance(result, BBCResult)
    assert (result.trials, result.dates, result.best) == (6, 8, 2)
    assert result.skill == pytest.approx(rows[2].metrics["val/skill"])
    assert result.difference is not None
    assert result.difference.is_above(0)
    assert result.difference.estimate == pytest.approx(0.05, abs=0.02)


def test_without_a_finished_default_job_there_is_no_comparison(tmp_path: Path) -> None:
    result = deflated_choice(equal_trials(tmp_path, 3), default_job=7)
    assert isinstance(result, BBCResult)
    assert result.difference is None


def test_trials_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    rows = [*equal_trials(tmp_path / "a", 2), *equal_trials(tmp_path / "b", 1, dates=7)]
    with pytest.raises(BundleError, match=r"val dates of job 0 differ from those of job 0"):
        read_gains(rows)
    (tmp_path / "a/1/val_losses.parquet").unlink()
    assert deflated_choice(rows, default_job=None) == "job 1 has no val_losses.parquet"


def test_too_few_dates_are_reported(tmp_path: Path) -> None:
    result = deflated_choice(equal_trials(tmp_path, 3, dates=4), default_job=0)
    assert result == "val has 4 trading dates, but 5 are needed"
    assert choice_sentences(result, default_job=0) == [
        "The choice is not deflated by dates: val has 4 trading dates, but 5 are needed."
    ]


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        ((0.002, 0.001, 0.003), "+0.200 % [+0.100, +0.300] on the same dates: better than"),
        ((0.002, -0.001, 0.003), "+0.200 % [-0.100, +0.300] on the same dates: not shown to be "
         "better than"),
        ((-0.002, -0.003, -0.001), "-0.200 % [-0.300, -0.100] on the same dates: worse than"),
    ],
)  # fmt: skip
def test_the_sentences_compare_the_choice_with_the_default(
    difference: tuple[float, float, float], text: str
) -> None:
    result = BBCResult(60, 17, 3, 0.0911, Interval(0.0873, 0.081, 0.093), Interval(*difference))
    assert choice_sentences(result, default_job=4) == [
        "Chosen on some of the 17 val dates and measured on the others, the best of 60 has "
        "+8.730 % [+8.100, +9.300] (BBC-CV; at least 95 %). Its +9.1100 % includes the dates that "
        "chose it.",
        f"The difference from the default settings (job 4) is {text} the default settings.",
    ]
