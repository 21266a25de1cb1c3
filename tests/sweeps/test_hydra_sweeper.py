"""A sweep started and resumed from the command line, with fake jobs."""

from pathlib import Path

import pandas as pd
import pytest

from robust_fin import train
from robust_fin.errors import ConfigError
from robust_fin.sweeps import hydra_sweeper
from robust_fin.sweeps.hydra_sweeper import merge_overrides, read_resume_command
from robust_fin.sweeps.job import SweepRecord
from tests.small_runs import locked_by_another
from tests.sweeps.driven import parse
from tests.sweeps.fake_jobs import STARTED

Capture = pytest.CaptureFixture[str]
EXECUTOR = "executor._target_=tests.sweeps.fake_jobs.FakeExecutor"


@pytest.fixture(autouse=True)
def _fake_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the summary, which needs real runs."""
    monkeypatch.setattr(hydra_sweeper, "show_summary", lambda _, complete: None)  # noqa: ARG005
    STARTED.clear()


def sweep(folder: Path, *words: str) -> int:
    return train.main(["+experiment=smoke", f"hydra.sweep.dir={folder}", EXECUTOR, *words])


def test_the_config_of_a_job_is_frozen_and_has_no_settings_of_the_sweep(
    tmp_path: Path, capsys: Capture
) -> None:
    words = ("model=nosuch,plain_mlp", "seed=4", "+hydra.job.env_set.TOLD='7'", "-m")
    assert sweep(tmp_path, *words, "batch_size=range(32,33)", "sweep.workers=2") == 1
    ((name, task),) = STARTED
    assert (name, task["run"]) == ("1", str(tmp_path / "1"))
    assert (task["resume"], task["module"]) == (False, "robust_fin.train")
    assert "\nseed: 4\n" in task["config"]
    assert "${" not in task["config"]
    assert not any(line.startswith(("sweep", "executor")) for line in task["config"].splitlines())
    assert task["environment"] == {"TOLD": "7"}
    assert task["logging"]["handlers"]["file"]["filename"] == str(tmp_path / "1/train.log")
    overrides = (tmp_path / "1/.hydra/overrides.yaml").read_text().splitlines()
    assert overrides == ["- +experiment=smoke", "- model=plain_mlp", "- seed=4", "- batch_size=32"]
    assert (tmp_path / "1/.hydra/hydra.yaml").read_text().startswith("hydra:\n")
    assert not (tmp_path / "1/.job").exists()
    assert (tmp_path / "1/output.log").read_text() == "fake\n"
    table = pd.read_csv(tmp_path / "sweep.csv").set_index("job")
    assert table["state"].to_dict() == {0: "failed", 1: "finished"}
    reason = table.loc[0, "reason"]
    assert "model=nosuch" in reason
    output = capsys.readouterr()
    assert output.out.splitlines()[1] == (
        "job 1 finished, 2 of 2: model=plain_mlp batch_size=32, val/skill +0.9877 %, 0 s"
    )
    assert output.err.startswith(f"error: job 0 failed: {reason}. 1 of 2 jobs failed; sweep.csv")


def test_an_experiment_defines_the_sweep_and_it_resumes_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    words = ("+experiment=ladder", "stress=none", "model.hidden=[16,8]", "seed=1")
    words = (*words, "trainer.precision=bf16-mixed")
    folder = tmp_path / "a sweep"
    subdir = f"hydra.sweep.dir='{folder}'"
    assert train.main([*words, subdir, EXECUTOR, "optimizer.lr=0.001,0.01"]) == 0
    first = pd.read_csv(folder / "sweep.csv").set_index("job")
    assert first["optimizer.lr"].tolist() == [0.01, 0.001]  # best first
    assert "stress" not in first
    assert train.main([*words, subdir, EXECUTOR]) == 1
    message = f"{folder} already contains a sweep. Resume it with python -m robust_fin.train"
    assert message in capsys.readouterr().err
    (folder / "1/metrics.json").unlink()
    STARTED.clear()
    monkeypatch.chdir(tmp_path)
    assert train.main(["sweep.resume=a sweep", "sweep.workers=3", "modules=[tests]"]) == 0
    assert [(name, task["resume"]) for name, task in STARTED] == [("1", False)]
    second = pd.read_csv(folder / "sweep.csv").set_index("job")
    assert second["val/skill"].to_dict() == first["val/skill"].to_dict()
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=interval(0.1,1)"], "is an interval, but a grid needs a list of values"),
        (["sweep.workers=1,2"], "sweep.workers=1,2 cannot be swept"),
        (["sweep.workers=0", "seed=1,2"], "sweep.workers=0 must be a positive integer"),
        (["optimizer.nosuch=1,2"], "optimizer.nosuch"),
    ],
)
def test_an_invalid_sweep_fails_before_any_job_starts(
    tmp_path: Path, capsys: Capture, words: list[str], message: str
) -> None:
    assert sweep(tmp_path / "sweep", *words, "-m") == 1
    assert message in capsys.readouterr().err
    assert STARTED == []


def test_the_command_line_overrides_the_params_of_an_experiment() -> None:
    params = parse("optimizer.lr=0.1,0.2", "model=a,b", "+extra=1")
    given = parse("seed=1", "optimizer.lr=0.5", "sweep.workers=2", "sweep=optuna", "extra=2")
    words = [override.input_line for override in merge_overrides(params, given)]
    assert words == ["optimizer.lr=0.5", "model=a,b", "extra=2", "seed=1"]


def test_a_sweep_resumes_with_its_recorded_command(tmp_path: Path) -> None:
    SweepRecord(tmp_path, ["seed=1,2", "sweep.workers=4", "sweep=optuna"], str(tmp_path)).write()
    words, cwd = read_resume_command([f"sweep.resume={tmp_path}"])
    assert cwd == tmp_path
    added = [f"hydra.sweep.dir={tmp_path}", "hydra.mode=MULTIRUN", "hydra.sweeper.resume=true"]
    kept = ["seed=1,2", "sweep.workers=4", "sweep=optuna"]
    assert words == [*kept, *added, "hydra.sweeper.retry_failed=false"]
    more = ["sweep.retry_failed=true", "sweep.workers=2"]
    words, _ = read_resume_command([f"sweep.resume={tmp_path}", *more])
    kept.remove("sweep.workers=4")
    assert words == [*kept, *added, "hydra.sweeper.retry_failed=true", "sweep.workers=2"]


@pytest.mark.parametrize("word", ["seed=1", "sweep=optuna", "hydra.sweep.dir=x"])
def test_other_overrides_cannot_be_combined_with_resume(tmp_path: Path, word: str) -> None:
    message = rf"{word} cannot be combined with sweep.resume; only sweep.workers and sweep.retry"
    with pytest.raises(ConfigError, match=message):
        read_resume_command([f"sweep.resume={tmp_path}", word])


def test_a_missing_working_directory_is_named(tmp_path: Path, capsys: Capture) -> None:
    SweepRecord(tmp_path, ["seed=1,2"], str(tmp_path / "gone")).write()
    assert train.main([f"sweep.resume={tmp_path}"]) == 1
    assert f"was started in {tmp_path / 'gone'}, where its rel" in capsys.readouterr().err


def test_a_second_command_cannot_run_the_same_sweep(tmp_path: Path, capsys: Capture) -> None:
    assert sweep(tmp_path, "seed=1,2", "-m") == 0
    STARTED.clear()
    with locked_by_another(tmp_path):
        assert train.main([f"sweep.resume={tmp_path}", "modules=[tests]"]) == 1
    assert f"another command is working in {tmp_path}" in capsys.readouterr().err
    assert STARTED == []
    assert train.main([f"sweep.resume={tmp_path}", "modules=[tests]"]) == 0
