"""A sweep of twelve jobs, four with two ranks and one that fails, killed halfway and resumed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.core.override_parser.types import Override

from robust_fin import train
from robust_fin.sweeps.strategy import STOPPED, Grid, Outcome, Trial
from tests.small_runs import QUICK, read_metrics
from tests.sweeps.rank_recorder import read_ranks

JOBS, FAILS = 12, 5
DUAL = {2, 6, 7, 11}  # jobs of two ranks
RECORDER = "+callbacks.rank_recorder._target_=tests.sweeps.rank_recorder.RankRecorder"
SMALL = (
    *("+experiment=smoke", *QUICK, "features=study", "source.synthetic.rows=4000"),
    *("batch_size=64", "trainer.accelerator=cpu", "trainer.max_epochs=4", "model.dropout=0.1"),
    *(
        "checkpoint.every_n_steps=5",
        "+callbacks.rank_recorder._target_=tests.sweeps.rank_recorder.RankRecorder",
    ),
)
FORKED = "executor._target_=tests.sweeps.forked.ForkedExecutor"  # starts without delay
PATIENCE = 900.0  # seconds; a shared machine can be slow


class Twelve(Grid):
    """A grid over seeds in which some jobs have two ranks and one has a rate that diverges."""

    def plan(
        self, overrides: Sequence[Override], *, folder: Path, done: Mapping[int, Outcome]
    ) -> int:
        fixed = tuple(str(override.input_line) for override in overrides)
        trials = [Trial(number, (*fixed, *extra_words(number))) for number in range(JOBS)]
        ended = {number for number, one in done.items() if one.state != STOPPED}
        self._pending = [trial for trial in trials if trial.number not in ended]
        assert all(one.trial.overrides == trials[n].overrides for n, one in done.items())
        assert folder.is_dir()
        return JOBS


def extra_words(number: int) -> tuple[str, ...]:
    dual = ("trainer.strategy=ddp", "trainer.devices=2") if number in DUAL else ()
    lr = ("optimizer.lr=1e30",) if number == FAILS else ("optimizer.lr=0.003",)
    return (f"seed={number % 4}", *lr, *dual)


def descendants(root: int) -> list[int]:
    """Return the process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parts = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(parts[1]), []).append(int(stat.parent.name))
    processes = [root]
    for process in processes:
        processes += children.get(process, [])
    return processes


def half_trained(folder: Path) -> set[int]:
    """Return the jobs with two ranks that have a checkpoint only, once five jobs have ended."""
    if not (folder / "sweep.json").exists():
        return set()
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    if sum(one["state"] != "running" for one in jobs.values()) < 5:
        return set()
    running = {int(number) for number, one in jobs.items() if one["state"] == "running"}
    cut = {one for one in running if (folder / str(one) / "checkpoints/last.ckpt").exists()}
    return {one for one in cut if not (folder / str(one) / "metrics.json").exists()} & DUAL


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int], dict[int, float]]:
    """Return the sweep's folder, the half-trained jobs, and when the others finished."""
    folder = tmp_path_factory.mktemp("killed") / "sweep"
    strategy = ("sweep._target_=tests.commands.test_sweep_kill.Twelve", "sweep.workers=2")
    words = [*SMALL, f"hydra.sweep.dir={folder}", "-m", FORKED, *strategy]
    log = folder.with_suffix(".log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "robust_fin.train", *words],
        stdout=log,
        stderr=log,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    deadline = time.monotonic() + PATIENCE
    while not (cut := half_trained(folder)):
        assert process.poll() is None, folder.with_suffix(".log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for one in descendants(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    log.close()
    when = {n: path.stat().st_mtime for n in range(JOBS) if (path := result(folder, n)).exists()}
    assert 4 <= len(when) < JOBS
    assert train.main([f"sweep.resume={folder}", "modules=[tests]"]) == 1
    return folder, cut, when


def result(folder: Path, job: int) -> Path:
    return folder / str(job) / "metrics.json"


@pytest.mark.slow
def test_every_row_of_the_killed_sweep_is_correct(
    resumed: tuple[Path, set[int], dict[int, float]],
) -> None:
    folder = resumed[0]
    found = pd.read_csv(folder / "sweep.csv")
    pd.testing.assert_frame_equal(
        found, pd.read_parquet(folder / "sweep.parquet").astype(found.dtypes)
    )
    assert sorted(found["job"]) == list(range(JOBS))
    assert found["job"].tolist()[-1] == FAILS
    finished = found.iloc[:-1]
    assert finished["val/skill"].is_monotonic_decreasing
    assert found["chosen"].tolist() == [True] + [False] * (JOBS - 1)
    assert found["test/skill"].notna().tolist() == found["chosen"].tolist()
    for _, row in finished.iterrows():
        assert_row(row, read_metrics(folder / str(row["job"])))
    failed = found.iloc[-1]
    assert failed["state"] == "failed"
    assert failed["reason"].startswith("the loss is nan")
    assert pd.isna(failed["val/skill"])
    assert failed["optimizer.lr"] == 1e30


def assert_row(row: "pd.Series[Any]", metrics: Mapping[str, Any]) -> None:
    job = row["job"]
    assert (row["state"], str(row["run"])) == ("finished", str(job))
    assert pd.isna(row["reason"])
    assert row["seed"] == job % 4
    assert row["optimizer.lr"] == 0.003
    assert (row["trainer.devices"] == 2) is (job in DUAL)
    for name in ("val/skill", "val/rank_ic", "train/objective", "steps", "train_rows"):
        assert row[name] == pytest.approx(metrics[name], rel=1e-12), name
    assert row["overrides"].endswith(" ".join(extra_words(job)))


@pytest.mark.slow
def test_finished_jobs_are_kept_and_half_trained_jobs_resume(
    resumed: tuple[Path, set[int], dict[int, float]], tmp_path: Path
) -> None:
    folder, cut, when = resumed
    assert {n: result(folder, n).stat().st_mtime for n in when} == when
    job = min(cut)
    alone = tmp_path / "alone"
    words = [*SMALL, *extra_words(job), f"hydra.run.dir={alone}"]
    assert train.main(words) == 0
    ours, theirs = read_metrics(folder / str(job)), read_metrics(alone)
    same = ("val/skill", "test/skill", "steps", "train/objective", "train_rows")
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


@pytest.mark.slow
def test_both_ranks_of_a_job_train_the_same_weights(
    resumed: tuple[Path, set[int], dict[int, float]],
) -> None:
    folder = resumed[0]
    for job in DUAL:
        ranks = read_ranks(folder / str(job))
        assert [one["world"] for one in ranks] == [2, 2]
        assert len({one["weights"] for one in ranks}) == 1
        assert {one["lr"] for one in ranks} == {0.003}
