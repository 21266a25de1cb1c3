"""A run that is a trial of a study reports val/skill, and stops if the pruner says so."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("optuna")

from robust_fin import train
from robust_fin.training.pruning import REPORTED_STEPS, LinkedTrial, StudyLink
from tests.optuna_studies import load_study, study_with
from tests.small_runs import QUICK, read_metrics

ROWS = ("source.synthetic.rows=3000", "features.names=[close_change_pct]", "batch_size=128")
FAR_AHEAD, FAR_BEHIND = ({number: figure for number in range(1, 9)} for figure in (9.0, -9.0))


def trained(run: Path, link: StudyLink, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    for name, value in link.to_environment().items():
        monkeypatch.setenv(name, value)
    epochs = ("trainer.max_epochs=4", "split.refit=true")
    return train.main(["+experiment=smoke", f"hydra.run.dir={run}", *QUICK, *ROWS, *epochs, *words])


def drawn(run: Path) -> list[tuple[int, float]]:
    """Steps and values of val/skill in TensorBoard."""
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return [(point.step, point.value) for point in events.Scalars("val/skill")]


@pytest.mark.parametrize("engine", ["plain", pytest.param("compiled", marks=pytest.mark.slow)])
def test_trial_behind_the_others_is_pruned(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    link = study_with(tmp_path / "journal", FAR_AHEAD)
    assert trained(tmp_path / "run", link, monkeypatch, f"engine={engine}") == 1
    trial = load_study(tmp_path / "journal").trials[1]
    curve = [value for _, value in drawn(tmp_path / "run")]
    assert trial.intermediate_values == pytest.approx({1: curve[0], 2: curve[1]}, abs=1e-7)
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    steps = trial.user_attrs[REPORTED_STEPS]
    assert steps[1] == 2 * steps[0] > 0
    assert failure == {
        "error": "Pruned",
        "message": f"trial 1 of search was pruned in epoch 2, at step {steps[1]}: its best "
        f"val/skill so far, {max(curve):.6f}, is behind that of the other trials",
    }
    assert f"error: {failure['message']}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert trial.state.name == "RUNNING"  # the sweep tells how it ended


@pytest.mark.slow
def test_trial_ahead_of_the_others_is_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = study_with(tmp_path / "journal", FAR_BEHIND)
    assert trained(tmp_path / "run", link, monkeypatch) == 0
    reported = load_study(tmp_path / "journal").trials[1].intermediate_values
    assert list(reported) == [1, 2, 3, 4]  # the refit has no val span, and reports nothing
    metrics = read_metrics(tmp_path / "run")
    assert max(reported.values()) == pytest.approx(metrics["val/skill"], abs=1e-6)
    monkeypatch.undo()
    alone = tmp_path / "alone"
    words = ("trainer.max_epochs=4", "split.refit=true")
    assert train.main(["+experiment=smoke", f"hydra.run.dir={alone}", *QUICK, *ROWS, *words]) == 0
    assert read_metrics(alone)["val/skill"] == metrics["val/skill"]
    bundled = [(one / "bundle" / "config.yaml").read_text() for one in (alone, tmp_path / "run")]
    assert bundled[0] == bundled[1]  # so a resumed run and the hash of the settings know nothing


def test_each_step_is_reported_once(tmp_path: Path) -> None:
    link = study_with(tmp_path / "journal", FAR_BEHIND)
    first = LinkedTrial(link)
    for step, figure in ((10, 0.1), (20, 0.2), (30, 0.3)):
        first.report(figure, step=step)
    resumed = LinkedTrial(link)  # from a checkpoint between step 10 and 20
    resumed.report(0.25, step=20)
    resumed.report(0.4, step=40)
    trial = load_study(tmp_path / "journal").trials[1]
    assert trial.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    assert trial.user_attrs[REPORTED_STEPS] == [10, 20, 30, 40]


def test_median_of_the_other_trials_decides(tmp_path: Path) -> None:
    link = study_with(tmp_path / "journal", {1: 0.9, 2: 0.1, 3: 0.5})
    trial = LinkedTrial(link)
    decisions = []
    for step, figure in ((8, 0.2), (16, 0.15), (24, 0.3)):
        trial.report(figure, step=step)
        decisions.append(trial.should_prune())
    # before the second validation none is ended; at it 0.2 is above 0.1; at the third 0.3 is the
    # best so far, and below 0.5
    assert decisions == [False, False, True]


@pytest.mark.parametrize("what", ["gone", "ended"])
def test_run_of_a_finished_trial_is_not_pruned(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = study_with(tmp_path / "journal", FAR_AHEAD)
    if what == "ended":
        load_study(tmp_path / "journal").tell(1, 0.5)
    else:
        (tmp_path / "journal").unlink()
    for name, value in link.to_environment().items():
        monkeypatch.setenv(name, value)
    assert LinkedTrial.from_environment() is None
