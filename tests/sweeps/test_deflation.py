"""The best of a sweep on val dates that did not choose it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robust_fin.errors import BundleError
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.multiple_testing import BBCResult
from robust_fin.sweeps.strategy import FAILED, FINISHED, Row
from robust_fin.sweeps.sweep_summary import (
    choice_words,
    deflated_choice,
    gains_of,
    val_skill_by_date,
)

DATES = pd.date_range("2024-01-08", periods=8)


def losses(shares: np.ndarray, *, fold: int = 0, member: int | None = None) -> pd.DataFrame:
    """A trial that has lost such shares of the constant's loss, date by date."""
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


def skill_of(one: pd.DataFrame) -> float:
    whole = (one["rows"] * one["loss_trivial"]).sum()
    return float(1 - (one["rows"] * one["loss"]).sum() / whole)


def row(folder: Path, number: int, *, skill: float | None, member: int | None = None) -> Row:
    state = FAILED if skill is None else FINISHED
    metrics = {} if skill is None else {"val/skill": skill}
    return Row(number, member, state, None, {}, "", metrics, 1.0, folder)


def trials(folder: Path, count: int, *, dates: int = 8, seed: int = 0) -> list[Row]:
    """Trials that differ by luck, but for the third, which is better by 5 % on every date."""
    draw, found = np.random.default_rng(seed), []
    for number in range(count):
        one = losses(1 - 0.01 * draw.normal(size=dates) - 0.05 * (number == 2))
        place = folder / str(number)
        place.mkdir(parents=True)
        one.to_parquet(place / "val_losses.parquet")
        found.append(row(place, number, skill=skill_of(one)))
    return found


def test_the_gains_of_the_dates_add_up_to_the_skill() -> None:
    draw = np.random.default_rng(0)
    one, other = losses(1 - 0.1 * draw.random(8)), losses(1 - 0.1 * draw.random(5), fold=1)
    assert val_skill_by_date(one, None).sum() == pytest.approx(skill_of(one))
    folds = pd.concat([one, other])
    assert val_skill_by_date(folds, None).sum() == pytest.approx(
        (skill_of(one) + skill_of(other)) / 2
    )
    assert list(val_skill_by_date(folds, None).index.names) == ["fold", "trading_date"]


def test_a_member_has_gains_of_its_own() -> None:
    net, third = losses(np.full(8, 0.9)), losses(np.full(8, 0.8), member=3)
    both = pd.concat([net, third])
    assert val_skill_by_date(both, None).sum() == pytest.approx(0.1)
    assert val_skill_by_date(both, 3).sum() == pytest.approx(0.2)
    assert val_skill_by_date(both, 1).empty


def test_the_choice_is_that_of_the_table_and_is_held_against_the_default(tmp_path: Path) -> None:
    rows = [*trials(tmp_path, 6), row(tmp_path, 6, skill=None)]
    found = deflated_choice(rows, default_job=0)
    assert isinstance(found, BBCResult)
    assert (found.trials, found.dates, found.best) == (6, 8, 2)
    assert found.skill == pytest.approx(rows[2].metrics["val/skill"])
    assert found.difference is not None
    assert found.difference.is_above(0)
    assert found.difference.estimate == pytest.approx(0.05, abs=0.02)


def test_where_the_default_has_not_finished_the_choice_is_held_against_nothing(
    tmp_path: Path,
) -> None:
    found = deflated_choice(trials(tmp_path, 3), default_job=7)
    assert isinstance(found, BBCResult)
    assert found.difference is None


def test_trials_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    rows = [*trials(tmp_path / "a", 2), *trials(tmp_path / "b", 1, dates=7)]
    with pytest.raises(BundleError, match=r"job 0 has other val dates than job 0"):
        gains_of(rows)
    (tmp_path / "a/1/val_losses.parquet").unlink()
    assert deflated_choice(rows, default_job=None) == "job 1 left no val_losses.parquet"


def test_a_few_dates_say_nothing(tmp_path: Path) -> None:
    found = deflated_choice(trials(tmp_path, 3, dates=4), default_job=0)
    assert found == "val has 4 trading dates, and 5 are needed"
    assert choice_words(found, default_job=0) == [
        "Not deflated by dates: val has 4 trading dates, and 5 are needed."
    ]


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        ((0.002, 0.001, 0.003), "+0.200 % [+0.100, +0.300] on the same dates: better than the "),
        ((0.002, -0.001, 0.003), "+0.200 % [-0.100, +0.300] on the same dates: not shown to be "
         "better than the "),
        ((-0.002, -0.003, -0.001), "-0.200 % [-0.300, -0.100] on the same dates: worse than the "),
    ],
)  # fmt: skip
def test_the_words(apart: tuple[float, float, float], said: str) -> None:
    found = BBCResult(60, 17, 3, 0.0911, Interval(0.0873, 0.081, 0.093), Interval(*apart))
    assert choice_words(found, default_job=4) == [
        "Chosen on some of the 17 val dates and measured on the others, the best of 60 has "
        "+8.730 % [+8.100, +9.300] (BBC-CV; at least 95 %): so much is left of its +9.1100 % "
        "without the dates that chose it.",
        f"Over job 4, the default settings, it is {said}default settings.",
    ]
