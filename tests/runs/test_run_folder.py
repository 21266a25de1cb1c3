"""A new run gets a folder of its own, in which no other command works."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from robust_fin import fit, train
from robust_fin.cli.composition import conf_folder
from robust_fin.errors import ConfigError
from robust_fin.runs.run_folder import NewRunFolder, check_holds_no_run, claim_folder
from tests.small_runs import files_below, locked_by_another

Capture = pytest.CaptureFixture[str]
NEVER_READ = ("+experiment=smoke", "trainer.enable_progress_bar=false", "report.pictures=false")


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name="train"):
        return compose("train", overrides=list(words), return_hydra_config=True)


@pytest.mark.parametrize(
    ("key", "start"), [("run", "on_run_start"), ("sweep", "on_multirun_start")]
)
def test_default_folder_that_exists_gets_a_suffix(key: str, start: str, tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        config = composed(f"hydra.{key}.dir={tmp_path}/12-00-00")
        config.hydra.overrides.hydra = []  # as if the name were the default of the YAML
        getattr(NewRunFolder(), start)(config)
        names.append(Path(config.hydra[key].dir).name)
    assert names == ["12-00-00", "12-00-00-2", "12-00-00-3"]


def test_named_folder_keeps_its_name(tmp_path: Path) -> None:
    config = composed(f"hydra.run.dir={tmp_path}")
    NewRunFolder().on_run_start(config)
    assert config.hydra.run.dir == str(tmp_path)


@pytest.mark.parametrize(
    "held", ["metrics.json", "checkpoints", "bundle/provenance.json", "select.json"]
)
def test_folder_with_a_run_is_refused(held: str, tmp_path: Path) -> None:
    (tmp_path / held).mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"already holds a run \({held}\).*resume="):
        check_holds_no_run(tmp_path)


def test_training_into_a_finished_run_changes_no_file(smoke_run: Path, capsys: Capture) -> None:
    before = {name: (smoke_run / name).read_bytes() for name in files_below(smoke_run)}
    assert train.main([*NEVER_READ, f"hydra.run.dir={smoke_run}", "seed=7"]) == 1
    assert f"{smoke_run} already holds a run (metrics.json)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="already holds a run"):
        fit("smoke", "seed=7", folder=smoke_run)
    after = {name: (smoke_run / name).read_bytes() for name in files_below(smoke_run)}
    assert after == before


def test_second_command_in_one_folder_is_refused(tmp_path: Path, capsys: Capture) -> None:
    with locked_by_another(tmp_path):
        assert train.main([*NEVER_READ, f"hydra.run.dir={tmp_path}"]) == 1
        with pytest.raises(ConfigError, match="another command is working in"):
            fit("smoke", folder=tmp_path)
    assert f"another command is working in {tmp_path}" in capsys.readouterr().err
    assert files_below(tmp_path) == {".lock"}


def test_resume_and_evaluate_wait_for_no_other_command(smoke_run: Path, capsys: Capture) -> None:
    from robust_fin import evaluate

    with locked_by_another(smoke_run):
        assert train.main([f"resume={smoke_run}", "trainer.max_epochs=9"]) == 1
        assert evaluate.main([f"run={smoke_run}"]) == 1
    said = capsys.readouterr().err
    assert said.count(f"another command is working in {smoke_run}") == 2


def test_folder_in_which_nothing_was_started_is_removed(tmp_path: Path) -> None:
    with claim_folder([f"hydra.run.dir={tmp_path}/run"]):
        assert (tmp_path / "run").is_dir()
    assert list(tmp_path.iterdir()) == []
