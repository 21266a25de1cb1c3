import math
from pathlib import Path

import numpy as np
import pytest

from robust_fin.runs.settings import fit_settings
from robust_fin.runs.training import load_first_fold
from robust_fin.training.baselines import trivial_objective
from tests.bars import config
from tests.evaluation.boards import Board
from tests.training.faults import Fault, fit_with, settings

CASE = Fault("loss", "1e30", "middle", "plain", "32-true", 1, "stop")


@pytest.mark.parametrize("loss", ["squared", "huber", "absolute"])
def test_it_is_the_better_of_median_and_mean(loss: str) -> None:
    composed = config(
        "+experiment=smoke", f"loss={loss}", "features=study", "source.synthetic.rows=3000"
    )
    data = load_first_fold(composed)
    target = data.target("train")
    errors = [np.abs(target - one) for one in (np.median(target), target.mean())]
    score = {
        "squared": lambda e: (e**2).mean(),
        "absolute": lambda e: e.mean(),
        "huber": lambda e: np.where(e <= 0.1, 0.5 * e**2, 0.1 * (e - 0.05)).mean(),
    }[loss]
    wanted = min(map(score, errors))
    assert trivial_objective(fit_settings(composed), [data]) == pytest.approx(wanted, rel=1e-5)
    assert trivial_objective(fit_settings(composed), [data, data]) == pytest.approx(
        wanted, rel=1e-5
    )


def test_members_with_deltas_of_their_own_have_none() -> None:
    composed = config("+experiment=smoke", "loss=huber", "population.delta=[0.1,0.2]")
    assert math.isnan(trivial_objective(fit_settings(composed), []))


def test_it_is_a_line_beside_the_objective(tmp_path: Path) -> None:
    bars, words = load_first_fold(settings(CASE)), ("trainer.max_epochs=2",)
    fit_with(None, tmp_path, bars, *words, like=CASE)
    found = Board(tmp_path / "tensorboard").curve("train/objective_trivial")
    assert list(found) == [0, 11, 23]
    wanted = trivial_objective(fit_settings(settings(CASE)), [bars])
    assert list(found.values()) == pytest.approx([wanted] * 3, rel=1e-6)
