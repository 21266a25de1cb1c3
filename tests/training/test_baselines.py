import numpy as np
import pandas as pd
import pytest

from robust_fin.data.examples import Examples
from robust_fin.data.targets import RankTarget
from robust_fin.training.baselines import constant, minus_last_return

TARGET = RankTarget.fit(np.array([-0.02, -0.01, 0.0, 0.01, 0.02]))


def examples(last_return: list[float]) -> Examples:
    rows = len(last_return)
    return Examples(
        time=np.arange(rows).astype("datetime64[ns]"),
        contract=pd.Categorical(["ESH24"] * rows),
        trading_date=np.zeros(rows).astype("datetime64[s]"),
        features=np.zeros((rows, 1)),
        last_return=np.array(last_return),
        close=np.full(rows, 5000.0),
        outcome=np.zeros(rows),
        label_end=np.arange(rows).astype("datetime64[ns]"),
        rows_in=rows,
        dropped={},
        unlabelled={},
        reports={},
    )


def test_constant_is_the_training_median() -> None:
    assert constant(np.array([0, 1]), TARGET).tolist() == [0.5, 0.5]


def test_minus_last_return_goes_through_the_rank_target() -> None:
    found = minus_last_return(examples([0.02, -0.02, 0.01, 0.0, 9.0]), np.arange(5), TARGET)
    assert found.tolist() == [0.0, 1.0, 0.25, 0.5, 0.0]


def test_without_a_last_return_it_forecasts_the_median() -> None:
    found = minus_last_return(examples([np.nan, 0.02]), np.array([0, 1]), TARGET)
    assert found.tolist() == pytest.approx([0.5, 0.0])
