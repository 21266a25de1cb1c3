"""Sweeps whose jobs are several processes: every rank of a job trains that job, on all the rows.

With Hydra's own launcher every rank went through a sweep of its own: an adaptive one trained other
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
    *(
        "split.refit=false",
        "+callbacks.rank_recorder._target_=tests.sweeps.rank_recorder.RankRecorder",
    ),
)
FORKED = "executor._target_=tests.sweeps.forked.ForkedExecutor"


def sweep(folder: Path, *words: str) -> pd.DataFrame:
    assert train.main([*SMALL, f"hydra.sweep.dir={folder}", "-m", *words]) == 0
    return pd.read_csv(folder / "sweep.csv").set_index("job").sort_index()


def assert_whole(run: Path, *, world: int, alone: dict[str, Any] | None = None) -> dict[str, Any]:
    """A job's ranks trained the same on all the rows; what they have in common."""
    told, metrics = read_ranks(run), read_metrics(run)
    assert [one["world"] for one in told] == [world] * world
    assert len({one["pid"] for one in told}) == world
    assert len({one["weights"] for one in told}) == 1
    assert len({one["lr"] for one in told}) == 1
    trained = sum(one["rows"] for one in told)
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
    found = sweep(tmp_path, f"trainer.devices={count}", "batch_size=64", *more)
    assert found["trainer.devices"].tolist() == list(devices)
    assert found["state"].tolist() == ["finished", "finished"]
    alone = assert_whole(tmp_path / str(devices.index(1)), world=1)
    both = assert_whole(tmp_path / str(devices.index(2)), world=2, alone=alone)
    assert both["steps"] == alone["steps"] // 2
    assert found["train_rows"].tolist() == [alone["train_rows"]] * 2
    said, best = capsys.readouterr().out, int(found["val/skill"].argmax())
    assert said.startswith("job 0 finished, 1 of 2: trainer.devices=")
    assert "2 trials (2 finished), by val/skill" in said
    assert f"Chosen by val/skill: job {best}, {tmp_path / str(best)}" in said
    assert "Were all 2 equally good, the best would be expected at" in said
    assert Run.open(tmp_path / str(best)).verdict in said
    assert f"table        {tmp_path / 'sweep.csv'}" in said


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_ranks_of_an_adaptive_sweep_train_the_same(tmp_path: Path, workers: int) -> None:
    adaptive = ("sweep._target_=tests.sweeps.halving.Halving", f"sweep.workers={workers}")
    found = sweep(tmp_path, *adaptive, "trainer.devices=2", "batch_size=64")
    best = rate = 0.04
    for job in range(3):
        assert found.loc[job, "optimizer.lr"] == pytest.approx(rate)
        assert [one["lr"] for one in read_ranks(tmp_path / str(job))] == [rate] * 2
        assert_whole(tmp_path / str(job), world=2)
        skills = found["val/skill"].iloc[: job + 1]
        best = found.loc[skills.idxmax(), "optimizer.lr"]
        rate = best / 2
    hashes = [read_ranks(tmp_path / str(job))[0]["weights"] for job in range(3)]
    assert len(set(hashes)) == 3


@pytest.mark.slow
def test_what_another_starter_left_in_the_environment_misleads_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"ROBUST_FIN_RANK": "1", "ROBUST_FIN_WORLD": "2", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    sweep(tmp_path, "trainer.devices=1,2", "batch_size=64")
    alone = assert_whole(tmp_path / "0", world=1)
    assert_whole(tmp_path / "1", world=2, alone=alone)
