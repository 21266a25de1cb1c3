"""The sweep as the command line starts it, and goes on with it; jobs are pretended."""

from pathlib import Path

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from robust_fin import train
from robust_fin.errors import ConfigError
from robust_fin.sweeps import hydra_sweeper as plugin
from robust_fin.sweeps.hydra_sweeper import one_a_key, read_resume_command
from robust_fin.sweeps.job import SweepRecord
from robust_fin.sweeps.sweep import only_command
from tests.sweeps.fake_jobs import STARTED

Capture = pytest.CaptureFixture[str]
parse = OverridesParser.create().parse_overrides


@pytest.fixture(autouse=True)
def _pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing started, and no test span to judge."""
    monkeypatch.setattr(plugin, "tell", lambda _, over: None)  # noqa: ARG005
    STARTED.clear()


def sweep(folder: Path, *words: str) -> int:
    executor = "executor._target_=tests.sweeps.fake_jobs.FakeExecutor"
    return train.main(["+experiment=smoke", f"hydra.sweep.dir={folder}", executor, *words])


def test_what_a_job_is_told_is_frozen_and_has_nothing_of_the_sweep(
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
    kept = (tmp_path / "1/.hydra/overrides.yaml").read_text().splitlines()
    assert kept == ["- +experiment=smoke", "- model=plain_mlp", "- seed=4", "- batch_size=32"]
    assert (tmp_path / "1/.hydra/hydra.yaml").read_text().startswith("hydra:\n")
    assert not (tmp_path / "1/.job").exists()
    assert (tmp_path / "1/output.log").read_text() == "pretended\n"
    found = pd.read_csv(tmp_path / "sweep.csv").set_index("job")
    assert found["state"].to_dict() == {0: "failed", 1: "finished"}
    said = capsys.readouterr()
    assert found.loc[0, "reason"].startswith("model=nosuch does not exist")
    assert said.out.splitlines()[1] == (
        "job 1 finished, 2 of 2: model=plain_mlp batch_size=32, val/skill +0.9877 %, 0 s"
    )
    assert said.err.startswith(f"error: {found.loc[0, 'reason']}. So ended job 0; 1 of 2 jobs")


def test_an_experiment_says_what_is_swept_and_the_sweep_goes_on_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    words = ("experiment=ladder", "stress=none", "model.hidden=[16,8]", "seed=1")
    words = (f"+{words[0]}", *words[1:], "trainer.precision=bf16-mixed")
    executor = "executor._target_=tests.sweeps.fake_jobs.FakeExecutor"
    folder = tmp_path / "a sweep"
    where = f"hydra.sweep.dir='{folder}'"
    assert train.main([*words, where, executor, "optimizer.lr=0.001,0.01"]) == 0
    found = pd.read_csv(folder / "sweep.csv").set_index("job")
    assert found["optimizer.lr"].tolist() == [0.01, 0.001]  # the best first
    assert "stress" not in found
    assert train.main([*words, where, executor]) == 1
    said = f"{folder} holds a sweep already. python -m robust_fin.train sweep.resume={folder} goes"
    assert said in capsys.readouterr().err
    (folder / "1/metrics.json").unlink()
    STARTED.clear()
    monkeypatch.chdir(tmp_path)
    assert train.main(["sweep.resume=a sweep", "sweep.workers=3"]) == 0
    assert [(name, task["resume"]) for name, task in STARTED] == [("1", False)]
    again = pd.read_csv(folder / "sweep.csv").set_index("job")
    assert again["val/skill"].to_dict() == found["val/skill"].to_dict()
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=interval(0.1,1)"], "is an interval, of which a grid cannot try every"),
        (["sweep.workers=1,2"], "sweep.workers=1,2 cannot be swept"),
        (["sweep.workers=0", "seed=1,2"], "sweep.workers=0 must be a whole number above 0"),
        (["optimizer.nosuch=1,2"], "optimizer.nosuch"),
    ],
)
def test_what_cannot_be_swept_is_said_and_nothing_started(
    tmp_path: Path, capsys: Capture, words: list[str], message: str
) -> None:
    assert sweep(tmp_path / "sweep", *words, "-m") == 1
    assert message in capsys.readouterr().err
    assert STARTED == []


def test_a_key_counts_once_and_the_command_line_comes_last() -> None:
    swept = parse(["optimizer.lr=0.1,0.2", "model=a,b", "+extra=1"])
    given = parse(["seed=1", "optimizer.lr=0.5", "sweep.workers=2", "sweep=optuna", "extra=2"])
    words = [word.input_line for word in one_a_key(swept, given)]
    assert words == ["optimizer.lr=0.5", "model=a,b", "extra=2", "seed=1"]


def test_a_sweep_goes_on_with_its_own_words(tmp_path: Path) -> None:
    SweepRecord(tmp_path, ["seed=1,2", "sweep.workers=4", "sweep=optuna"], str(tmp_path)).write()
    words, start = read_resume_command([f"sweep.resume={tmp_path}"])
    assert start == tmp_path
    ours = [f"hydra.sweep.dir='{tmp_path}'", "hydra.mode=MULTIRUN", "hydra.sweeper.resume=true"]
    kept = ["seed=1,2", "sweep.workers=4", "sweep=optuna"]
    assert words == [*kept, *ours, "hydra.sweeper.retry_failed=false"]
    more = ["sweep.retry_failed=true", "sweep.workers=2"]
    words, _ = read_resume_command([f"sweep.resume={tmp_path}", *more])
    kept.remove("sweep.workers=4")
    assert words == [*kept, *ours, "hydra.sweeper.retry_failed=true", "sweep.workers=2"]


@pytest.mark.parametrize("word", ["seed=1", "sweep=optuna", "hydra.sweep.dir=x"])
def test_other_words_beside_resume_are_refused(tmp_path: Path, word: str) -> None:
    message = rf"{word} cannot be changed on sweep.resume; only sweep.workers and sweep.retry"
    with pytest.raises(ConfigError, match=message):
        read_resume_command([f"sweep.resume={tmp_path}", word])


def test_a_folder_that_is_gone_is_said(tmp_path: Path, capsys: Capture) -> None:
    SweepRecord(tmp_path, ["seed=1,2"], str(tmp_path / "gone")).write()
    assert train.main([f"sweep.resume={tmp_path}"]) == 1
    assert f"the folder {tmp_path / 'gone'}, in which the sweep" in capsys.readouterr().err


def test_two_commands_on_one_sweep_are_one_too_many(tmp_path: Path, capsys: Capture) -> None:
    assert sweep(tmp_path, "seed=1,2", "-m") == 0
    STARTED.clear()
    with only_command(tmp_path):
        assert train.main([f"sweep.resume={tmp_path}"]) == 1
    assert f"another command works on the sweep in {tmp_path}" in capsys.readouterr().err
    assert STARTED == []
    assert train.main([f"sweep.resume={tmp_path}"]) == 0
