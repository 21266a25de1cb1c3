"""sweep=optuna as a command: with fake jobs to test the search, and with real jobs."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("optuna")

from robust_fin import train
from robust_fin.training.pruning import REPORTED_STEPS
from tests.conftest import ROOT
from tests.optuna_studies import load_study
from tests.small_runs import QUICK
from tests.sweeps.fake_jobs import STARTED, fake_skill

pytestmark = pytest.mark.processes

FAKE = "executor._target_=tests.sweeps.fake_jobs.FakeExecutor"
TINY = (*QUICK, "source.synthetic.rows=3000", "features.names=[close_change_pct]", "batch_size=128")
RATES = "optimizer.lr=0.003,1e-12"  # the second barely changes the initial weights
EARLY = ("sweep.pruner.n_startup_trials=1", "sweep.pruner.n_warmup_steps=0")


def sweep(folder: Path, *words: str) -> int:
    return train.main(["+experiment=smoke", "sweep=optuna", f"hydra.sweep.dir={folder}", *words])


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "sweep.csv").set_index("job")


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the summary, which needs real runs."""
    monkeypatch.setattr("robust_fin.sweeps.hydra_sweeper.show_summary", lambda _, complete: None)  # noqa: ARG005
    STARTED.clear()


@pytest.mark.usefixtures("fake_runs")
def test_the_best_trial_is_the_first_row_and_the_default_is_job_0(tmp_path: Path) -> None:
    assert sweep(tmp_path, FAKE, "sweep.trials=6") == 0  # -m is not needed
    found = table(tmp_path)
    assert sorted(found.index) == list(range(6))
    default = found.loc[0]
    assert (default["optimizer.lr"], default["optimizer.weight_decay"]) == (0.003, 0.0001)
    assert default["val/skill"] == pytest.approx(fake_skill(0.003, 0))
    assert found["val/skill"].is_monotonic_decreasing
    best = found.iloc[0]
    assert best["chosen"]
    assert best["val/skill"] == pytest.approx(fake_skill(best["optimizer.lr"], 0))
    assert best["val/skill"] > default["val/skill"]
    assert load_study(tmp_path / "study.journal").best_trial.number == found.index[0]
    configs = [task["config"] for _, task in STARTED]
    assert not any(line.startswith("sweep") for one in configs for line in one.splitlines())


@pytest.mark.slow
@pytest.mark.usefixtures("fake_runs")
def test_non_finite_trials_are_failed_rows_and_the_study_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ("sweep.space=null", "optimizer.lr=tag(log,interval(0.0001,100))")
    words = (FAKE, "sweep.trials=8", "sweep/sampler=random", "-m")
    assert sweep(tmp_path, *words, *rates) == 1
    found = table(tmp_path).sort_index()
    failed = found["optimizer.lr"] > 1
    assert 0 < failed.sum() < 7
    assert (found["state"] == "failed").tolist() == failed.tolist()
    assert set(found["reason"].dropna()) == {"the loss is nan at step 3"}
    states = [one.state.name for one in load_study(tmp_path / "study.journal").trials]
    assert states == ["FAIL" if one else "COMPLETE" for one in failed]
    assert "jobs failed; sweep.csv has all reasons" in capsys.readouterr().err


@pytest.mark.usefixtures("fake_runs")
def test_an_invalid_search_fails_before_any_job_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, FAKE, "split.val_fraction=0") == 1
    message = capsys.readouterr().err
    assert message.startswith("error: sweep=optuna maximises val/skill, but split.val_fraction=0 ")
    assert STARTED == []


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_trial_without_progress_is_pruned_in_every_rank(devices: int, tmp_path: Path) -> None:
    group = () if devices == 1 else ("trainer=ddp", f"trainer.devices={devices}")
    words = ("sweep.space=null", RATES, "sweep/sampler=random", "sweep.trials=5")
    assert sweep(tmp_path, *TINY, *EARLY, *group, *words, "trainer.max_epochs=3") == 0
    found = table(tmp_path).sort_index()
    pruned = found[found["state"] == "pruned"]
    assert found.loc[0, "state"] == "finished"
    assert len(pruned) > 0
    assert set(pruned["optimizer.lr"]) == {1e-12}
    trials = load_study(tmp_path / "study.journal").trials
    for number, row in pruned.iterrows():
        trial = trials[number]
        assert (trial.state.name, list(trial.intermediate_values)) == ("PRUNED", [1])
        step = trial.user_attrs[REPORTED_STEPS][0]
        assert (
            f"trial {number} of search was pruned in epoch 1, at step {step}: its" in row["reason"]
        )
        failure = json.loads((tmp_path / str(number) / "failure.json").read_text())
        assert failure["error"] == "Pruned"
        assert not (tmp_path / str(number) / "metrics.json").exists()
    whole = [trials[number] for number in found.index[found["state"] == "finished"]]
    assert [list(one.intermediate_values) for one in whole] == [[1, 2, 3]] * len(whole)


def start_search(*words: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "robust_fin.train", "+experiment=smoke", "sweep=optuna"]
    return subprocess.Popen([*command, *TINY, *words], cwd=ROOT, stdout=subprocess.DEVNULL)


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in children] + [
        below for one in children for below in descendants(int(one))
    ]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_kill_9_and_resume_lose_no_ended_trial(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    long = ("trainer.max_epochs=30", "checkpoint.every_n_steps=20", "sweep.pruner=null")
    process = start_search(f"hydra.sweep.dir={folder}", "sweep.trials=4", "sweep.workers=2", *long)
    deadline = time.monotonic() + 900
    ended = [folder / str(number) / "metrics.json" for number in range(4)]
    while sum(path.exists() for path in ended) < 1 or not (folder / "2").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    known = {path for path in ended if path.exists()}
    before = {path: path.stat().st_mtime_ns for path in known}
    assert train.main([f"sweep.resume={folder}", "modules=[tests]"]) == 0
    found = table(folder)
    assert sorted(found.index) == [0, 1, 2, 3]
    assert set(found["state"]) == {"finished"}
    assert {path: path.stat().st_mtime_ns for path in known} == before  # none was trained twice
    every = load_study(folder / "study.journal").trials
    counted = [one for one in every if "lost" not in one.user_attrs]
    assert len(every) - len(counted) <= 2  # those that were running
    assert [one.state.name for one in counted] == ["COMPLETE"] * 4
    values = {one.user_attrs["job"]: one.value for one in counted}
    assert values == pytest.approx(found["val/skill"].to_dict(), abs=1e-12)


@pytest.mark.slow
def test_two_commands_share_one_study(tmp_path: Path) -> None:
    shared = (f"sweep.storage={tmp_path / 'journal'}", "sweep.trials=4", "sweep.study=both")
    folders = [tmp_path / "a", tmp_path / "b"]
    pair = [start_search(f"hydra.sweep.dir={folder}", *shared) for folder in folders]
    assert [one.wait(900) for one in pair] == [0, 0]
    tables = [table(folder) for folder in folders]
    trials = [
        one
        for one in load_study(tmp_path / "journal", "both").trials
        if "lost" not in one.user_attrs
    ]
    assert len(trials) == sum(map(len, tables)) == 4
    figures = sorted(value for one in tables for value in one["val/skill"])
    assert sorted(one.value for one in trials) == pytest.approx(figures, abs=1e-12)
