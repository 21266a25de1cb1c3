"""The sweep loop with fake jobs: starts, stops and resumes, and the table of the results."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from robust_fin.errors import ConfigError
from robust_fin.sweeps.strategy import FAILED, FINISHED, PRUNED, STOPPED, Figure, Grid, Outcome, Row
from robust_fin.sweeps.sweep import (
    OnOutcome,
    Sweep,
    best_row,
    infer_column,
    sort_rows,
    sweep_table,
    write_table,
)
from tests.sweeps.fake_jobs import HELD, STARTED, FakeJob, fake_skill, run_fake_sweep
from tests.sweeps.halving import Halving

KILLED = "the job's process was killed by SIGKILL, as the kernel does when memory runs out"
SWEEP = Path("/sweep")


@pytest.fixture(autouse=True)
def _nothing_started() -> Iterator[None]:
    STARTED.clear()
    HELD.clear()
    yield
    HELD.clear()


def read_table(folder: Path) -> pd.DataFrame:
    """Read sweep.parquet, sorted by job, and check that sweep.csv agrees."""
    table = pd.read_parquet(folder / "sweep.parquet")
    csv = pd.read_csv(folder / "sweep.csv")
    assert list(csv.columns) == list(table.columns)
    assert csv["job"].tolist() == table["job"].tolist()
    return table.sort_values("job").set_index("job")


def starts() -> list[tuple[str, bool]]:
    """Return the started jobs, and whether each resumed from a checkpoint."""
    return [(name, task["resume"]) for name, task in STARTED]


def test_every_job_is_a_row_and_no_failure_ends_the_sweep(tmp_path: Path) -> None:
    swept = ("optimizer.lr=0.01,1e30", "seed=0,13")
    complete, _, outcomes = run_fake_sweep(tmp_path, *swept, "batch_size=32")
    assert complete
    assert [one.state for one in outcomes] == ["finished", "failed", "failed", "failed"]
    table = read_table(tmp_path)
    assert table["state"].tolist() == [one.state for one in outcomes]
    assert pd.isna(table.loc[0, "reason"])
    assert table["reason"].tolist()[1:] == [KILLED, "the loss is nan at step 3", KILLED]
    assert table["optimizer.lr"].tolist() == [0.01, 0.01, 1e30, 1e30]
    assert table["seed"].tolist() == [0, 13, 0, 13]
    assert "batch_size" not in table
    assert table["run"].tolist() == ["0", "1", "2", "3"]
    assert table.loc[0, "overrides"] == "optimizer.lr=0.01 seed=0 batch_size=32"
    failure = json.loads((tmp_path / "1/failure.json").read_text())
    assert failure == {"error": "JobLost", "message": KILLED}


def test_a_job_whose_config_cannot_be_composed_is_a_failed_row(tmp_path: Path) -> None:
    _, _, outcomes = run_fake_sweep(tmp_path, "model=nosuch,plain_mlp")
    assert [(one.state, one.reason) for one in outcomes] == [
        ("failed", "there is no model=nosuch"),
        ("finished", None),
    ]
    assert starts() == [("1", False)]
    assert read_table(tmp_path)["state"].tolist() == ["failed", "finished"]
    failure = json.loads((tmp_path / "0/failure.json").read_text())
    assert failure == {"error": "ConfigError", "message": "there is no model=nosuch"}


def test_a_row_is_chosen_only_when_all_jobs_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: list[pd.DataFrame] = []
    write = Sweep.write_table

    def recording(self: Sweep, *, complete: bool) -> None:
        write(self, complete=complete)
        tables.append(pd.read_csv(tmp_path / "sweep.csv"))

    monkeypatch.setattr(Sweep, "write_table", recording)
    run_fake_sweep(tmp_path, "optimizer.lr=0.1,0.01,0.001", "seed=0")
    assert [len(table) for table in tables] == [0, 1, 2, 3, 3]
    assert not any(table["chosen"].any() or "test/skill" in table for table in tables[:-1])
    last = tables[-1]
    assert last["job"].tolist() == [1, 0, 2]
    assert last["val/skill"].tolist() == pytest.approx([0.01, 0.009, 0.009])
    assert last["chosen"].tolist() == [True, False, False]
    assert last["test/skill"].isna().tolist() == [False, True, True]


def test_at_most_workers_jobs_run_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    collect = Sweep._collect

    def counting(self: Sweep, on_outcome: OnOutcome, *, stopping: bool) -> None:
        counts.append(len(self.running))
        collect(self, on_outcome, stopping=stopping)

    monkeypatch.setattr(Sweep, "_collect", counting)
    run_fake_sweep(tmp_path, "seed=range(5)", strategy=Grid(workers=3))
    assert counts == [3, 2]


def send_ctrl_c(monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[FakeJob]:
    """Send SIGINT at each of the first polls; return the polled jobs."""
    polled: list[FakeJob] = []
    poll = FakeJob.poll

    def poll_with_signal(job: FakeJob) -> int | None:
        polled.append(job)
        if len(polled) > times:
            return poll(job)
        os.kill(os.getpid(), signal.SIGINT)
        return None

    monkeypatch.setattr(FakeJob, "poll", poll_with_signal)
    return polled


def test_ctrl_c_stops_the_jobs_and_the_sweep_can_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HELD.update({1, 2})
    words, before = ("seed=1,2,3", "optimizer.lr=0.01"), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        polled = send_ctrl_c(patch, times=1)
        complete, _, outcomes = run_fake_sweep(tmp_path, *words, strategy=Grid(workers=2))
    assert not complete
    assert signal.getsignal(signal.SIGINT) == before
    assert [(one.trial.number, one.state) for one in outcomes] == [(0, "stopped"), (1, "stopped")]
    assert {tuple(job.requests) for job in polled} == {("stop",)}
    table = read_table(tmp_path)
    assert table["state"].tolist() == ["stopped", "stopped"]
    assert not table["chosen"].any()
    HELD.clear()
    STARTED.clear()
    complete, _, _ = run_fake_sweep(tmp_path, *words)
    assert complete
    assert starts() == [("0", True), ("1", True), ("2", False)]
    assert read_table(tmp_path)["state"].tolist() == ["finished"] * 3


def test_the_second_ctrl_c_kills_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    HELD.add(1)
    polled = send_ctrl_c(monkeypatch, times=2)
    complete, _, _ = run_fake_sweep(tmp_path, "seed=1,2")
    assert not complete
    assert polled[0].requests == ["stop", "kill"]


def without_times(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "sweep.csv")
    return table.drop(columns=[name for name in table if "second" in name])


def test_a_killed_and_resumed_sweep_has_the_table_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("optimizer.lr=0.01,1e30", "seed=0,1")
    run_fake_sweep(tmp_path / "whole", *words)

    class KilledError(BaseException):
        """Ends the sweep like kill -9: no handler of the package catches it."""

    def kill(self: Grid, outcome: Outcome) -> None:  # noqa: ARG001
        if outcome.trial.number == 2:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Grid, "tell", kill)
        with pytest.raises(KilledError):
            run_fake_sweep(tmp_path / "killed", *words)
    path = tmp_path / "killed/sweep.json"
    record = json.loads(path.read_text())
    record["jobs"]["1"]["state"] = "running"  # it ended after the sweep was killed
    path.write_text(json.dumps(record))
    STARTED.clear()
    run_fake_sweep(tmp_path / "killed", *words)
    assert starts() == [("3", False)]
    pd.testing.assert_frame_equal(
        without_times(tmp_path / "killed"), without_times(tmp_path / "whole")
    )


def test_failed_jobs_are_retried_only_on_request(tmp_path: Path) -> None:
    words = ("optimizer.lr=0.01,1e30",)
    run_fake_sweep(tmp_path, *words)
    STARTED.clear()
    run_fake_sweep(tmp_path, *words)
    assert STARTED == []
    run_fake_sweep(tmp_path, *words, retry_failed=True)
    assert starts() == [("1", False)]


def test_a_job_with_other_settings_than_those_of_the_sweep_starts_again(tmp_path: Path) -> None:
    run_fake_sweep(tmp_path, "seed=0,1", "batch_size=256")
    STARTED.clear()
    changed = tmp_path / "1/bundle/config.yaml"
    changed.write_text(changed.read_text().replace("batch_size: 256", "batch_size: 128"))
    moved = tmp_path / "0/bundle/config.yaml"
    moved.write_text(moved.read_text().replace("trials.jsonl", "/elsewhere/trials.jsonl"))
    run_fake_sweep(tmp_path, "seed=0,1", "batch_size=256")
    assert starts() == [("1", False)]


def test_another_grid_in_the_same_folder_raises(tmp_path: Path) -> None:
    run_fake_sweep(tmp_path, "seed=0,1")
    with pytest.raises(ConfigError, match=r"job 0 of .* has the overrides seed=0, which differ"):
        run_fake_sweep(tmp_path, "seed=5,6")


@pytest.mark.parametrize(
    ("subdir", "message"),
    [("same", "gives jobs 0 and 1 the same folder"), ("../out", "puts job 0 into")],
)
def test_two_jobs_never_share_a_folder(tmp_path: Path, subdir: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_fake_sweep(tmp_path, "seed=1,2", f"subdir={subdir}")


def test_an_adaptive_strategy_is_asked_after_each_outcome(tmp_path: Path) -> None:
    run_fake_sweep(tmp_path, "seed=0", strategy=Halving(workers=2))
    table, rates = read_table(tmp_path), [0.04, 0.02, 0.01]
    assert table["optimizer.lr"].tolist() == rates
    assert table["val/skill"].tolist() == pytest.approx([fake_skill(lr, 0) for lr in rates])
    assert [task["environment"] for _, task in STARTED] == [{"ASKED": str(lr)} for lr in rates]


def row(
    number: int,
    skill: float | None = None,
    *,
    state: str = FINISHED,
    member: int | None = None,
    **settings: str,
) -> Row:
    figures: dict[str, Figure] = {
        "test/skill": 0.5, "baseline/ridge/skill": 0.1, "against/ridge/skill": 0.4, "steps": 7,
        "seed": 3, "train/objective": 0.25, "val/rank_ic": 0.1, "val/skill": skill,
        "members/test/skill_mean": 0.3, "members/val/skill_mean": 0.2,
    }  # fmt: skip
    return Row(
        number=number,
        member=member,
        state=state,
        reason=None if state == FINISHED else "because",
        settings=settings,
        overrides=f"job {number}",
        metrics=figures if state == FINISHED else {},
        seconds=1.25,
        folder=SWEEP / str(number),
    )


def test_rows_are_sorted_by_val_skill_and_those_without_come_last() -> None:
    rows = [
        row(0, state=FAILED), row(1, 0.1), row(2, float("nan")), row(3, 0.3), row(4, None),
        row(5, state=STOPPED), row(6, state=PRUNED), row(7, 0.3), row(8, state=FAILED),
    ]  # fmt: skip
    assert [one.number for one in sort_rows(rows)] == [3, 7, 1, 2, 4, 0, 8, 6, 5]
    assert best_row(rows) is rows[3]
    assert best_row([rows[0], rows[2]]) is None
    assert best_row([]) is None


def test_only_the_chosen_row_has_test_figures() -> None:
    rows = [row(0, 0.1, lr="0.1", seed="0"), row(1, 0.2, lr="1e-3", seed="0")]
    table = sweep_table(rows, swept=["seed"], chosen=rows[1], folder=SWEEP)
    assert list(table.columns) == [
        "job", "chosen", "state", "reason", "lr", "seed", "val/skill", "val/rank_ic",
        "members/val/skill_mean", "train/objective", "steps", "test/skill",
        "members/test/skill_mean", "job_seconds", "run", "overrides",
    ]  # fmt: skip
    assert table["job"].tolist() == [1, 0]
    assert table["lr"].tolist() == [0.001, 0.1]
    assert table["seed"].tolist() == [0, 0]
    assert table["test/skill"].isna().tolist() == [False, True]
    assert table["run"].tolist() == ["1", "0"]


def test_no_test_figure_is_shown_before_a_row_is_chosen() -> None:
    table = sweep_table([row(0, 0.1), row(1, 0.2)], swept=[], chosen=None, folder=SWEEP)
    assert not [name for name in table if "test/" in name]
    assert table["chosen"].tolist() == [False, False]


def test_members_have_a_column() -> None:
    rows = [row(0, 0.1, member=1), row(0, 0.2, member=0), row(1, state=FAILED)]
    table = sweep_table(rows, swept=[], chosen=rows[1], folder=SWEEP)
    assert table["member"].astype(object).tolist() == [0, 1, pd.NA]
    assert table["chosen"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("texts", "dtype", "values"),
    [
        (["1", "2"], "Int64", [1, 2]),
        (["1", "null", "3"], "Int64", [1, None, 3]),
        (["1", "2.5", "1e30"], "Float64", [1.0, 2.5, 1e30]),
        (["true", "False"], "boolean", [True, False]),
        (["[16,8]", "[64]"], "string", ["[16,8]", "[64]"]),
        (["1", "x"], "string", ["1", "x"]),
        (["true", "1"], "string", ["true", "1"]),
        ([None, None], "Int64", [None, None]),
    ],
)
def test_the_type_of_a_column_is_inferred(
    texts: list[str | None], dtype: str, values: list[object]
) -> None:
    column = infer_column(texts)
    assert str(column.dtype) == dtype
    assert [None if pd.isna(value) else value for value in column] == values


def test_csv_and_parquet_hold_the_table(tmp_path: Path) -> None:
    rows = [row(0, 0.1, hidden="[16,8]"), row(1, state=FAILED, hidden="[64]")]
    table = sweep_table(rows, swept=["hidden"], chosen=rows[0], folder=SWEEP)
    write_table(table, tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "sweep.parquet"), table)
    csv = pd.read_csv(tmp_path / "sweep.csv")
    assert list(csv.columns) == list(table.columns)
    assert csv["hidden"].tolist() == ["[16,8]", "[64]"]
    assert csv["val/skill"].tolist()[0] == 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.csv", "sweep.parquet"]
    write_table(sweep_table([], swept=[], chosen=None, folder=SWEEP), tmp_path)
    assert pd.read_csv(tmp_path / "sweep.csv").empty
