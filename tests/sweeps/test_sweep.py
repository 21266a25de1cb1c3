"""Sweeps whose jobs are pretended: what is started, what is a row, and going on."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robust_fin.errors import ConfigError
from robust_fin.sweeps.strategy import Grid, Outcome
from robust_fin.sweeps.sweep import Sweep
from tests.sweeps.fake_jobs import HELD, STARTED, FakeJob, run_fake_sweep, skill
from tests.sweeps.halving import Halving

KILLED = "the job's process was killed by SIGKILL, as the kernel does when memory runs out"


@pytest.fixture(autouse=True)
def _nothing_started() -> Iterator[None]:
    STARTED.clear()
    HELD.clear()
    yield
    HELD.clear()


def table(folder: Path) -> pd.DataFrame:
    """sweep.parquet by job; sweep.csv says the same."""
    found = pd.read_parquet(folder / "sweep.parquet")
    written = pd.read_csv(folder / "sweep.csv")
    assert list(written.columns) == list(found.columns)
    assert written["job"].tolist() == found["job"].tolist()
    return found.sort_values("job").set_index("job")


def resumes() -> list[tuple[str, bool]]:
    """Jobs that were started, and whether from a checkpoint."""
    return [(name, task["resume"]) for name, task in STARTED]


def test_every_job_is_a_row_and_none_ends_the_sweep(tmp_path: Path) -> None:
    whole, _, told = run_fake_sweep(
        tmp_path, "optimizer.lr=0.01,1e30", "seed=0,13", "batch_size=32"
    )
    assert whole
    assert [one.state for one in told] == ["finished", "failed", "failed", "failed"]
    found = table(tmp_path)
    assert found["state"].tolist() == [one.state for one in told]
    assert pd.isna(found.loc[0, "reason"])
    assert found["reason"].tolist()[1:] == [KILLED, "the loss is nan at step 3", KILLED]
    assert found["optimizer.lr"].tolist() == [0.01, 0.01, 1e30, 1e30]
    assert found["seed"].tolist() == [0, 13, 0, 13]
    assert "batch_size" not in found
    assert found["run"].tolist() == ["0", "1", "2", "3"]
    assert found.loc[0, "overrides"] == "optimizer.lr=0.01 seed=0 batch_size=32"
    failure = json.loads((tmp_path / "1/failure.json").read_text())
    assert failure == {"error": "JobLost", "message": KILLED}


def test_a_job_that_cannot_be_composed_is_a_row(tmp_path: Path) -> None:
    _, _, told = run_fake_sweep(tmp_path, "model=nosuch,plain_mlp")
    assert [(one.state, one.reason) for one in told] == [
        ("failed", "there is no model=nosuch"),
        ("finished", None),
    ]
    assert resumes() == [("1", False)]
    assert table(tmp_path)["state"].tolist() == ["failed", "finished"]
    failure = json.loads((tmp_path / "0/failure.json").read_text())
    assert failure == {"error": "ConfigError", "message": "there is no model=nosuch"}


def test_one_is_chosen_when_all_have_ended_and_not_before(tmp_path: Path) -> None:
    seen = []
    write = Sweep.write_table

    def watched(self: Sweep, *, over: bool) -> None:
        write(self, over=over)
        seen.append(pd.read_csv(tmp_path / "sweep.csv"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sweep, "write_table", watched)
        run_fake_sweep(tmp_path, "optimizer.lr=0.1,0.01,0.001", "seed=0")
    assert [len(one) for one in seen] == [0, 1, 2, 3, 3]
    assert not any(one["chosen"].any() or "test/skill" in one for one in seen[:-1])
    last = seen[-1]
    assert last["job"].tolist() == [1, 0, 2]
    assert last["val/skill"].tolist() == pytest.approx([0.01, 0.009, 0.009])
    assert last["chosen"].tolist() == [True, False, False]
    assert last["test/skill"].isna().tolist() == [False, True, True]


def test_so_many_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    collect = Sweep._collect

    def counting(self: Sweep, told: Callable[[Outcome], None], *, asked: bool) -> None:
        counts.append(len(self.running))
        collect(self, told, asked=asked)

    monkeypatch.setattr(Sweep, "_collect", counting)
    run_fake_sweep(tmp_path, "seed=range(5)", strategy=Grid(workers=3))
    assert counts == [3, 2]


def ctrl_c(monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[FakeJob]:
    """So many of them while jobs run, one a look at the jobs; those that were looked at."""
    seen: list[FakeJob] = []
    poll = FakeJob.poll

    def watched(job: FakeJob) -> int | None:
        seen.append(job)
        if len(seen) > times:
            return poll(job)
        os.kill(os.getpid(), signal.SIGINT)
        return None

    monkeypatch.setattr(FakeJob, "poll", watched)
    return seen


def test_ctrl_c_lets_jobs_end_and_the_sweep_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HELD.update({1, 2})
    words, before = ("seed=1,2,3", "optimizer.lr=0.01"), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        seen = ctrl_c(patch, times=1)
        whole, _, told = run_fake_sweep(tmp_path, *words, strategy=Grid(workers=2))
    assert not whole
    assert signal.getsignal(signal.SIGINT) == before
    assert [(one.trial.number, one.state) for one in told] == [(0, "stopped"), (1, "stopped")]
    assert {tuple(one.asked) for one in seen} == {("stop",)}
    found = table(tmp_path)
    assert found["state"].tolist() == ["stopped", "stopped"]
    assert not found["chosen"].any()
    HELD.clear()
    STARTED.clear()
    whole, _, _ = run_fake_sweep(tmp_path, *words)
    assert whole
    assert resumes() == [("0", True), ("1", True), ("2", False)]
    assert table(tmp_path)["state"].tolist() == ["finished"] * 3


def test_the_second_ctrl_c_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    HELD.add(1)
    seen = ctrl_c(monkeypatch, times=2)
    whole, _, _ = run_fake_sweep(tmp_path, "seed=1,2")
    assert not whole
    assert seen[0].asked == ["stop", "kill"]


def of_result(folder: Path) -> pd.DataFrame:
    found = pd.read_csv(folder / "sweep.csv")
    return found.drop(columns=[name for name in found if "second" in name])


def test_a_killed_sweep_goes_on_to_the_table_of_one_that_was_not(tmp_path: Path) -> None:
    words = ("optimizer.lr=0.01,1e30", "seed=0,1")
    run_fake_sweep(tmp_path / "whole", *words)

    class KilledError(BaseException):
        """Stands for kill -9: nothing of ours handles it."""

    def killed(self: Grid, outcome: Outcome) -> None:  # noqa: ARG001
        if outcome.trial.number == 2:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Grid, "tell", killed)
        with pytest.raises(KilledError):
            run_fake_sweep(tmp_path / "cut", *words)
    path = tmp_path / "cut/sweep.json"
    record = json.loads(path.read_text())
    record["jobs"]["1"]["state"] = "running"  # it ended, and nobody was left to write that down
    path.write_text(json.dumps(record))
    STARTED.clear()
    run_fake_sweep(tmp_path / "cut", *words)
    assert resumes() == [("3", False)]
    pd.testing.assert_frame_equal(of_result(tmp_path / "cut"), of_result(tmp_path / "whole"))


def test_failed_jobs_are_tried_again_only_when_asked(tmp_path: Path) -> None:
    words = ("optimizer.lr=0.01,1e30",)
    run_fake_sweep(tmp_path, *words)
    STARTED.clear()
    run_fake_sweep(tmp_path, *words)
    assert STARTED == []
    run_fake_sweep(tmp_path, *words, retry_failed=True)
    assert resumes() == [("1", False)]


def test_a_job_whose_settings_are_not_those_of_the_sweep_starts_anew(tmp_path: Path) -> None:
    run_fake_sweep(tmp_path, "seed=0,1", "batch_size=256")
    STARTED.clear()
    kept = tmp_path / "1/bundle/config.yaml"
    kept.write_text(kept.read_text().replace("batch_size: 256", "batch_size: 128"))
    other = tmp_path / "0/bundle/config.yaml"
    other.write_text(other.read_text().replace("trials.jsonl", "/elsewhere/trials.jsonl"))
    run_fake_sweep(tmp_path, "seed=0,1", "batch_size=256")
    assert resumes() == [("1", False)]


def test_another_grid_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run_fake_sweep(tmp_path, "seed=0,1")
    with pytest.raises(ConfigError, match=r"job 0 of .* was made with seed=0, and the grid has"):
        run_fake_sweep(tmp_path, "seed=5,6")


@pytest.mark.parametrize(
    ("subdir", "message"), [("same", "gives jobs 0 and 1 the same folder"), ("../out", "job 0 in")]
)
def test_two_jobs_never_share_a_folder(tmp_path: Path, subdir: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_fake_sweep(tmp_path, "seed=1,2", f"subdir={subdir}")


def test_a_strategy_that_adapts_is_asked_again_after_each_end(tmp_path: Path) -> None:
    run_fake_sweep(tmp_path, "seed=0", strategy=Halving(workers=2))
    found = table(tmp_path)
    assert found["optimizer.lr"].tolist() == [0.04, 0.02, 0.01]
    assert found["val/skill"].tolist() == pytest.approx([skill(lr, 0) for lr in (0.04, 0.02, 0.01)])
    environments: list[dict[str, Any]] = [task["environment"] for _, task in STARTED]
    assert environments == [{"ASKED": "0.04"}, {"ASKED": "0.02"}, {"ASKED": "0.01"}]
