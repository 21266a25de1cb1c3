"""sweep=optuna without training: trials, outcomes, shared studies, kills and errors."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from hydra import compose
from hydra.errors import HydraException
from hydra.utils import instantiate

from robust_fin.errors import ConfigError
from robust_fin.sweeps.optuna_search import OptunaSearch, repair_journal
from robust_fin.sweeps.strategy import FAILED, PRUNED, STOPPED
from robust_fin.training.pruning import REPORTED_STEPS, STUDY_VARIABLE, LinkedTrial, StudyLink
from tests.conftest import ROOT
from tests.optuna_studies import MEDIAN, load_study
from tests.sweeps.driven import by_number, drive, outcome, parse, project_configs

LR = {"optimizer": {"lr": {"low": 1e-4, "high": 0.1, "log": True}}}
TPE = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 4, "multivariate": True}


@pytest.fixture(autouse=True)
def _conf() -> Iterator[None]:
    with project_configs():
        yield


def search(**given: Any) -> OptunaSearch:
    usual: dict[str, Any] = {
        "trials": 8,
        "workers": 1,
        "space": LR,
        "try_default": True,
        "seed": 0,
        "study": "search",
        "storage": None,
        "sampler": TPE,
        "pruner": None,
    }
    return OptunaSearch(**usual | given)


def planned(folder: Path, *texts: str, done: Mapping[int, Any] | None = None, **given: Any) -> Any:
    found = search(**given)
    found.plan(parse("+experiment=top5", *texts), folder=folder, done=done or {})
    return found


def closeness(settings: Mapping[str, str]) -> float:
    """Return a score that is best at a learning rate of 0.02."""
    return -abs(float(settings["optimizer.lr"]) - 0.02)


def test_the_first_trial_is_the_default_and_the_search_approaches_the_best(tmp_path: Path) -> None:
    strategy = search(trials=25)
    assert strategy.plan(parse("+experiment=top5"), folder=tmp_path, done={}) == 25
    outcomes = drive(strategy, closeness)
    assert [one.trial.number for one in outcomes] == list(range(25))
    assert outcomes[0].trial.overrides == ("+experiment=top5", "optimizer.lr=0.003")
    rates = [float(one.trial.settings["optimizer.lr"]) for one in outcomes]
    assert all(1e-4 <= rate <= 0.1 for rate in rates)
    best = max(map(lambda one: one.metrics["val/skill"], outcomes))
    assert best > -0.002 > closeness({"optimizer.lr": "0.003"})
    study = load_study(tmp_path / "study.journal")
    assert [one.params["optimizer.lr"] for one in study.trials] == rates
    assert [one.value for one in study.trials] == [
        closeness(one.trial.settings) for one in outcomes
    ]
    assert study.best_value == best


def test_the_default_job_is_the_first_job(tmp_path: Path) -> None:
    strategy = planned(tmp_path, trials=4)
    assert strategy.default_job() is None
    drive(strategy, closeness)
    assert strategy.default_job() == 0
    without = planned(tmp_path / "without", trials=3, try_default=False)
    drive(without, closeness)
    assert without.default_job() is None


def test_the_default_job_of_a_shared_study_belongs_to_one_sweep(tmp_path: Path) -> None:
    journal = str(tmp_path / "shared.journal")
    first = planned(tmp_path / "a", trials=4, storage=journal)
    other = planned(tmp_path / "b", trials=4, storage=journal)
    drive(first, closeness, most=1)
    drive(other, closeness)
    assert (first.default_job(), other.default_job()) == (0, None)


def test_the_search_depends_on_the_seed_and_a_resume_continues_it_exactly(
    tmp_path: Path,
) -> None:
    whole = drive(planned(tmp_path / "a", trials=12), closeness)
    half = drive(planned(tmp_path / "b", trials=12), closeness, most=6)
    rest = drive(planned(tmp_path / "b", trials=12, done=by_number(half)), closeness)
    assert [one.trial for one in half + rest] == [one.trial for one in whole]
    other = drive(planned(tmp_path / "c", trials=12, seed=1), closeness)
    assert [one.trial for one in other][1:] != [one.trial for one in whole][1:]


def test_every_kind_of_value_becomes_an_override(tmp_path: Path) -> None:
    space = {
        "batch_size": {"choices": [512, 1024]},
        "model": {"hidden": {"choices": [[8], [16, 8]]}},
        "trainer": {"max_epochs": {"low": 2, "high": 12}},
        "loss": {"choices": ["huber", "squared"]},
    }
    swept = ("model.dropout=interval(0,0.2)", "split.refit=false")
    outcomes = drive(planned(tmp_path, *swept, space=space), lambda _: 0.1)
    assert outcomes[0].trial.overrides == (
        "+experiment=top5",
        "split.refit=false",
        "batch_size=1024",
        "model.hidden=[16,8]",
        "trainer.max_epochs=12",
        "loss=squared",
        "model.dropout=0.0",
    )
    for one in outcomes:
        values = one.trial.settings
        assert values["batch_size"] in ("512", "1024")
        assert values["model.hidden"] in ("[8]", "[16,8]")
        assert 2 <= int(values["trainer.max_epochs"]) <= 12
        assert 0 <= float(values["model.dropout"]) <= 0.2


@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "median"), ("random", "hyperband")])
def test_the_configured_samplers_and_pruners_work(
    sampler: str, pruner: str, tmp_path: Path
) -> None:
    given = (f"sweep/sampler={sampler}", f"sweep/pruner={pruner}", "sweep.trials=12")
    config = compose("train", overrides=["sweep=optuna", *given], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    strategy = instantiate(config.sweep)
    assert strategy.plan(parse("+experiment=top5"), folder=tmp_path, done={}) == 12
    assert len(drive(strategy, closeness)) == 12
    rates = [one.params["optimizer.lr"] for one in load_study(tmp_path / "study.journal").trials]
    assert len(set(rates)) == 12


def test_a_non_finite_skill_fails_its_trial_and_the_study_continues(tmp_path: Path) -> None:
    strategy = planned(tmp_path, trials=5, pruner=MEDIAN)
    given = [float("nan"), None, 0.1]
    first = [strategy.ask() for _ in given]
    for trial, skill in zip(first, given, strict=True):
        strategy.tell(outcome(trial, skill))
    failed, pruned = strategy.ask(), strategy.ask()
    LinkedTrial(StudyLink.from_environment(pruned.environment)).report(0.05, step=7)
    strategy.tell(outcome(failed, state=FAILED, reason="the loss is nan at step 3"))
    strategy.tell(outcome(pruned, state=PRUNED, reason="pruned in epoch 1"))
    assert strategy.ask() is None  # failed and pruned trials count
    trials = load_study(tmp_path / "study.journal").trials
    assert [one.state.name for one in trials] == ["FAIL", "FAIL", "COMPLETE", "FAIL", "PRUNED"]
    assert [one.user_attrs.get("reason") for one in trials] == [
        "val/skill is nan",
        "val/skill is None",
        None,
        "the loss is nan at step 3",
        "pruned in epoch 1",
    ]
    assert trials[4].value == 0.05
    assert trials[4].user_attrs[REPORTED_STEPS] == [7]


def test_a_job_finds_its_trial_through_its_environment(tmp_path: Path) -> None:
    strategy = planned(tmp_path, pruner=MEDIAN)
    trials = [strategy.ask(), strategy.ask()]
    links = [json.loads(one.environment[STUDY_VARIABLE]) for one in trials]
    journal = str(tmp_path / "study.journal")
    assert links == [
        {"journal": journal, "study": "search", "trial": number, "pruner": MEDIAN}
        for number in (0, 1)
    ]
    assert planned(tmp_path / "other").ask().environment == {}  # not needed without a pruner


def test_a_kill_loses_only_the_running_trials(tmp_path: Path) -> None:
    killed = planned(tmp_path, trials=6, pruner=MEDIAN)
    outcomes = drive(killed, closeness, most=2)
    finished, running, stopped = killed.ask(), killed.ask(), killed.ask()
    done = by_number(outcomes)
    done[2] = outcome(finished, 0.5)  # the study was not told
    done[4] = outcome(stopped, state=STOPPED, reason="stopped")
    resumed = planned(tmp_path, trials=6, pruner=MEDIAN, done=done)
    states = [one.state.name for one in load_study(tmp_path / "study.journal").trials]
    assert states == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL", "RUNNING"]
    assert load_study(tmp_path / "study.journal").trials[2].value == 0.5
    rest = drive(resumed, closeness)
    assert rest[0].trial == stopped  # resumes with the same link to the study
    assert [one.trial.number for one in rest] == [4, 3, 5]  # 3 replaces the lost trial
    trials = load_study(tmp_path / "study.journal").trials
    assert [one.state.name for one in trials].count("COMPLETE") == 6
    assert [one.user_attrs.get("lost") for one in trials] == [None] * 3 + [True] + [None] * 3
    assert running.number == 3


def test_a_lost_default_trial_is_retried(tmp_path: Path) -> None:
    planned(tmp_path).ask()
    assert planned(tmp_path).ask().settings["optimizer.lr"] == "0.003"
    assert load_study(tmp_path / "study.journal").trials[0].user_attrs["lost"]


def test_a_retried_job_is_not_counted_twice(tmp_path: Path) -> None:
    first = planned(tmp_path, trials=3)
    outcomes = drive(first, lambda s: None if s["optimizer.lr"] == "0.003" else 0.1)
    done = by_number(outcomes[1:])
    again = drive(planned(tmp_path, trials=3, done=done), closeness)
    assert [one.trial.number for one in again] == [0]


SHARED = """
import sys, time
from pathlib import Path
from tests.sweeps.driven import drive, project_configs
from tests.sweeps.test_optuna_search import closeness, planned

journal, folder, beside = map(Path, sys.argv[1:])
with project_configs():
    folder.mkdir()
    strategy = planned(folder, storage=str(journal), trials=30)
    while not beside.is_dir():
        time.sleep(0.001)
    drive(strategy, lambda settings: time.sleep(0.005) or closeness(settings))
"""


@pytest.mark.slow
def test_two_processes_share_one_study(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    journal = tmp_path / "shared" / "journal"
    pair = [
        subprocess.Popen([sys.executable, "-c", SHARED, journal, own, other], cwd=ROOT)
        for own, other in (folders, folders[::-1])
    ]
    assert [one.wait(600) for one in pair] == [0, 0]
    trials = [one for one in load_study(journal).trials if "lost" not in one.user_attrs]
    assert len(trials) == 30
    assert {one.state.name for one in trials} == {"COMPLETE"}
    jobs = {str(folder): [] for folder in folders}
    for one in trials:
        jobs[one.user_attrs["sweep"]].append(one.user_attrs["job"])
    for own in jobs.values():
        assert own == list(range(len(own)))
        assert own  # each ran some
    rates = [one.params["optimizer.lr"] for one in trials]
    assert len(set(rates)) == 30
    assert rates.count(0.003) == 1  # the default, only once


def test_an_incomplete_last_line_of_the_journal_is_removed(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    drive(planned(tmp_path, trials=3), closeness, most=2)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"tri')
    repair_journal(journal)
    assert journal.read_bytes() == whole
    assert [one.state.name for one in load_study(journal).trials] == ["COMPLETE"] * 2
    repair_journal(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        (("split.val_fraction=0",), {}, r"split\.val_fraction=0 leaves no val span\. Set split"),
        ((), {"space": None}, r"no key to search\. Set keys"),
        (("optimizer.lr=0.001",), {}, r"no key to search"),
        (
            ("optimizer.lr=interval(0.01,0.1)",),
            {},
            r"optimizer\.lr is 0\.003 by default, which is not in",
        ),
        (("loss=huber,absolute",), {}, r"loss is squared by default, which .* \(huber, absolute\)"),
        (("+a.b=1,2",), {}, "a.b"),
        ((), {"trials": 0}, r"sweep\.trials=0"),
    ],
)
def test_an_invalid_search_raises_before_the_study_is_created(
    texts: tuple[str, ...], given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, HydraException), match=message):
        planned(tmp_path, *texts, **given)
    assert list(tmp_path.iterdir()) == []


def test_a_key_set_on_the_command_line_is_not_searched(tmp_path: Path) -> None:
    space = LR | {"model": {"dropout": {"low": 0.0, "high": 0.3}}}
    strategy = planned(tmp_path, "optimizer.lr=0.01", space=space)
    assert strategy.ask().overrides == (
        "+experiment=top5",
        "optimizer.lr=0.01",
        "model.dropout=0.0",
    )


def test_only_the_same_search_can_join_a_study(tmp_path: Path) -> None:
    shared = str(tmp_path / "journal")
    planned(tmp_path / "a", storage=shared)
    other = {"optimizer": {"lr": {"low": 1e-4, "high": 1.0, "log": True}}}
    with pytest.raises(ConfigError, match=r"has another sweep\.space.* sweep\.study=NAME"):
        planned(tmp_path / "b", storage=shared, space=other)
    with pytest.raises(ConfigError, match=r"has other settings"):
        planned(tmp_path / "b", "batch_size=512", storage=shared)
    planned(tmp_path / "b", "batch_size=512", storage=shared, study="another")
    planned(tmp_path / "b", "threads=2", storage=shared)  # affects no result


def test_an_unwritable_journal_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be kept in .*journal.* sweep\.storage=FILE"):
        planned(tmp_path, storage=str(tmp_path / "file" / "journal"))


def test_a_missing_optuna_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'sweep=optuna needs Optuna .*-e "\.\[sweep\]"'):
        planned(tmp_path)
    assert list(tmp_path.iterdir()) == []
