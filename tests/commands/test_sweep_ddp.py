"""Sweeps whose jobs have several ranks: every rank trains its job's settings, on all the rows.

With Hydra's own launcher every rank ran a sweep of its own: an adaptive sweep trained other
settings in each rank, devices=1,2 trained the second job on half of the rows, and devices=2,1
crashed.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robust_fin import train
from robust_fin.runs.run import Run
from tests.small_runs import QUICK, read_metrics
from tests.sweeps.rank_recorder import read_ranks

pytestmark = pytest.mark.processes

RECORDER = "+callbacks.rank_recorder._target_=tests.sweeps.rank_recorder.RankRecorder"
SMALL = (
    *("+experiment=smoke", *QUICK, "features=study", "source.synthetic.rows=4000"),
    *("trainer=ddp", "engine=plain", "trainer.accelerator=cpu", "trainer.max_epochs=1"),
    *("split.refit=false", RECORDER),
)
FORKED = "executor._target_=tests.sweeps.forked.ForkedExecutor"


def sweep(folder: Path, *words: str) -> pd.DataFrame:
    assert train.main([*SMALL, f"hydra.sweep.dir={folder}", "-m", *words]) == 0
    return pd.read_csv(folder / "sweep.csv").set_index("job").sort_index()


def assert_ranks_agree(
    run: Path, *, world: int, alone: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Check that a job's ranks trained the same weights on all the rows; return its metrics."""
    ranks, metrics = read_ranks(run), read_metrics(run)
    assert [rank["world"] for rank in ranks] == [world] * world
    assert len({rank["pid"] for rank in ranks}) == world
    assert len({rank["weights"] for rank in ranks}) == 1
    assert len({rank["lr"] for rank in ranks}) == 1
    trained = sum(rank["rows"] for rank in ranks)
    assert trained == metrics["train_rows"] // (world * 64) * world * 64
    if alone is not None:
        sizes = ("rows", "train_rows", "val_rows", "test_rows")
        assert {name: metrics[name] for name in sizes} == {name: alone[name] for name in sizes}
    return metrics


@pytest.mark.parametrize(
    ("devices", "more"),
    [
        ((2, 1), (FORKED,)),
        pytest.param((2, 1), (), marks=pytest.mark.slow),
        pytest.param((1, 2), (), marks=pytest.mark.slow),
    ],
)
def test_one_device_and_two_in_one_sweep(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    devices: tuple[int, int],
    more: tuple[str, ...],
) -> None:
    count = ",".join(map(str, devices))
    table = sweep(tmp_path, f"trainer.devices={count}", "batch_size=64", *more)
    assert table["trainer.devices"].tolist() == list(devices)
    assert table["state"].tolist() == ["finished", "finished"]
    alone = assert_ranks_agree(tmp_path / str(devices.index(1)), world=1)
    both = assert_ranks_agree(tmp_path / str(devices.index(2)), world=2, alone=alone)
    assert both["steps"] == alone["steps"] // 2
    assert table["train_rows"].tolist() == [alone["train_rows"]] * 2
    output, best = capsys.readouterr().out, int(table["val/skill"].argmax())
    assert output.startswith("job 0 finished, 1 of 2: trainer.devices=")
    assert "2 trials (2 finished), by val/skill" in output
    assert f"Chosen by val/skill: job {best}, {tmp_path / str(best)}" in output
    assert "If all 2 were equally good, the best would be expected at" in output
    assert Run.open(tmp_path / str(best)).verdict in output
    assert f"table        {tmp_path / 'sweep.csv'}" in output


@pytest.mark.parametrize(
    ("workers", "trials", "more"),
    [
        (1, 2, (FORKED,)),
        pytest.param(1, 3, (), marks=pytest.mark.slow),
        pytest.param(2, 3, (), marks=pytest.mark.slow),
    ],
)
def test_the_ranks_of_an_adaptive_sweep_train_the_same_settings(
    tmp_path: Path, workers: int, trials: int, more: tuple[str, ...]
) -> None:
    adaptive = ("sweep._target_=tests.sweeps.halving.Halving", f"+sweep.trials={trials}")
    words = (f"sweep.workers={workers}", "trainer.devices=2", "batch_size=64", *more)
    table = sweep(tmp_path, *adaptive, *words)
    rate = 0.04
    for job in range(trials):
        assert table.loc[job, "optimizer.lr"] == pytest.approx(rate)
        assert [rank["lr"] for rank in read_ranks(tmp_path / str(job))] == [rate] * 2
        assert_ranks_agree(tmp_path / str(job), world=2)
        best = table["val/skill"].iloc[: job + 1].idxmax()
        rate = table.loc[best, "optimizer.lr"] / 2
    weights = {read_ranks(tmp_path / str(job))[0]["weights"] for job in range(trials)}
    assert len(weights) == trials


@pytest.mark.slow
def test_variables_of_another_launcher_do_not_affect_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"ROBUST_FIN_RANK": "1", "ROBUST_FIN_WORLD": "2", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    sweep(tmp_path, "trainer.devices=1,2", "batch_size=64")
    alone = assert_ranks_agree(tmp_path / "0", world=1)
    assert_ranks_agree(tmp_path / "1", world=2, alone=alone)
