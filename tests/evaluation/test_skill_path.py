import numpy as np
import pandas as pd
import pytest

from robust_fin.evaluation.significance import judge, rows_by_model, skill_path
from tests.evaluation.tables import predictions, with_models


def test_the_path_of_a_table_one_can_count() -> None:
    dates = np.array(["2024-01-30", "2024-01-31", "2024-02-01"], dtype="datetime64[s]")
    rows = {"trading_date": dates, "time": dates, "contract": "A", "fold": 0, "outcome": 0.0}
    table = pd.DataFrame(rows | {"target": [0.6, 0.4, 0.5]})
    net = table.assign(model="net", score=[0.6, 0.5, 0.6])
    path = skill_path({"net": net, "constant": table.assign(model="constant", score=0.5)})
    # the constant loses 0.005, 0.005 and 0; the net 0, 0.005 and 0.005
    assert path.saved["net"] == pytest.approx([0.5, 0.5, 0.0])
    assert path.month_ends() == [1, 2]
    assert list(path.saved) == ["net"]


def test_it_ends_in_the_skill() -> None:
    table = predictions(strength=0.2)
    other = 0.5 + 0.1 * np.random.default_rng(0).normal(size=len(table))
    run = with_models(table, {"ridge": other})
    found, path = judge(run, draws=10), skill_path(rows_by_model(run))
    assert path.saved["net"][-1] == pytest.approx(found.net.skill.estimate, rel=1e-9)
    assert path.saved["ridge"][-1] == pytest.approx(found.baselines["ridge"].skill.estimate)
    assert path.dates.size == found.net.dates
