"""A run with split=cpcv: its backtest paths in metrics, predictions and report."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy.stats import spearmanr

from robust_fin.runs.run import Run
from tests.small_runs import run_training

GROUPS, TESTED = 4, 2
WORDS = (
    *("split=cpcv", f"split.groups={GROUPS}", f"split.test_groups={TESTED}"),
    *("split.val_fraction=0.1", "source.synthetic.rows=4000", "trainer.max_epochs=1"),
    *("features.names=[close_change_pct]", "batch_size=256"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("cpcv") / "run"
    run_training(folder, *WORDS)
    return Run.open(folder)


def test_every_path_holds_every_row_once(run: Run) -> None:
    net = run.predictions[run.predictions["model"] == "net"]
    paths = comb(GROUPS - 1, TESTED - 1)
    assert sorted(net["path"].unique()) == list(range(paths))
    per_path = [set(one["time"]) for _, one in net.groupby("path")]
    assert len(net) == sum(map(len, per_path))  # no row twice in a path
    assert all(first == second for first, second in combinations(per_path, 2))


def test_metrics_of_the_paths_follow_from_the_predictions(run: Run) -> None:
    net = run.predictions[run.predictions["model"] == "net"]
    order = [
        spearmanr(one["score"].astype("float64"), one["outcome"]).statistic
        for _, one in net.groupby("path")
    ]
    expected = {"mean": np.mean(order), "std": np.std(order, ddof=1)}
    expected |= {"min": min(order), "max": max(order)}
    assert run.metrics["paths/count"] == len(order)
    for name, value in expected.items():
        assert run.metrics[f"paths/rank_ic_{name}"] == pytest.approx(value, abs=1e-9)


def test_report_names_the_spread_over_the_paths(run: Run) -> None:
    page = run.report.read_text(encoding="utf-8")
    assert f"{comb(GROUPS - 1, TESTED - 1)} backtest paths" in page
