"""The grid and population strategies: their jobs, members and table rows, without training."""

import json
from pathlib import Path
from typing import Any

import pytest

from robust_fin.errors import ConfigError
from robust_fin.sweeps.executors import Executor, LocalExecutor
from robust_fin.sweeps.strategy import (
    FAILED,
    FINISHED,
    STOPPED,
    Grid,
    PopulationSearch,
    Strategy,
    Trial,
    combinations,
)
from tests.sweeps.driven import ask_all, by_number, drive, outcome, parse, project_configs
from tests.sweeps.fake_jobs import FakeExecutor

FOLDER = Path("sweep")


def test_the_classes_implement_the_protocols() -> None:
    assert isinstance(Grid(workers=1), Strategy)
    assert isinstance(PopulationSearch(workers=1, trials=None, space=None, seed=0), Strategy)
    assert isinstance(LocalExecutor(), Executor)
    assert isinstance(FakeExecutor(), Executor)


def test_the_settings_of_a_trial_are_its_overrides() -> None:
    trial = Trial(0, ("+experiment=top5", "++a.b='x=y'", "~c", "model.hidden=[16,8]"))
    wanted = {"experiment": "top5", "a.b": "'x=y'", "c": "", "model.hidden": "[16,8]"}
    assert trial.settings == wanted


def test_a_grid_has_every_combination_with_the_last_key_fastest() -> None:
    grid = Grid(workers=1)
    words = ["optimizer.lr=0.1,1e-3", "+experiment=top5", "seed=range(2)", "model.hidden=[8],[4,2]"]
    assert grid.plan(parse(*words), folder=FOLDER, done={}) == 8
    trials = ask_all(grid)
    assert [trial.number for trial in trials] == list(range(8))
    first, last = trials[0].overrides, trials[7].overrides
    assert first == ("optimizer.lr=0.1", "+experiment=top5", "seed=0", "model.hidden=[8]")
    assert trials[1].overrides[2:] == ("seed=0", "model.hidden=[4,2]")
    assert trials[2].overrides[2:] == ("seed=1", "model.hidden=[8]")
    assert last == ("optimizer.lr=0.001", "+experiment=top5", "seed=1", "model.hidden=[4,2]")
    assert grid.ask() is None


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("lr=choice(1,2)", ["lr=1", "lr=2"]),
        ("lr=range(0.5,2,0.5)", ["lr=0.5", "lr=1.0", "lr=1.5"]),
        ("lr=sort(3,1,2)", ["lr=1", "lr=2", "lr=3"]),
        ("name='a b','c'", ["name='a b'", "name='c'"]),
        ("flag=true,false", ["flag=True", "flag=False"]),
        ("+lr=1,2", ["+lr=1", "+lr=2"]),
        ("lr=1", ["lr=1"]),
        ("~lr", ["~lr"]),
    ],
)
def test_a_grid_expands_the_lists_and_ranges_of_hydra(word: str, values: list[str]) -> None:
    grid = Grid(workers=1)
    assert grid.plan(parse(word), folder=FOLDER, done={}) == len(values)
    assert [trial.overrides for trial in ask_all(grid)] == [(value,) for value in values]


def test_a_grid_rejects_an_interval() -> None:
    message = r"lr=interval\(0,1\) is an interval, but a grid needs a list .* with sweep=optuna"
    with pytest.raises(ConfigError, match=message):
        Grid(workers=1).plan(parse("lr=interval(0,1)"), folder=FOLDER, done={})


def test_a_resumed_grid_asks_for_stopped_and_missing_jobs_only() -> None:
    states = (FINISHED, STOPPED, FAILED)
    done = {n: outcome(Trial(n, (f"seed={n}",)), state=state) for n, state in enumerate(states)}
    grid = Grid(workers=2)
    assert grid.plan(parse("seed=range(4)"), folder=FOLDER, done=done) == 4
    assert ask_all(grid) == [Trial(1, ("seed=1",)), Trial(3, ("seed=3",))]


def population(*texts: str, done: Any = None, **given: Any) -> tuple[PopulationSearch, int]:
    settings = {"workers": 1, "trials": None, "space": None, "seed": 0} | given
    strategy = PopulationSearch(**settings)
    with project_configs():
        overrides = parse("+experiment=top5", *texts)
        total = strategy.plan(overrides, folder=FOLDER, done=done or {})
    return strategy, total


def test_keys_of_members_become_lists_and_other_keys_become_jobs() -> None:
    swept = ("optimizer.lr=0.001,0.01", "model.hidden=[8],[16,8]", "seed=range(2)")
    strategy, total = population(*swept, "batch_size=512")
    assert total == 2
    members = (
        "population.members=4",
        "population.lr=[0.001,0.001,0.01,0.01]",
        "population.seeds=[0,1,0,1]",
    )
    assert [(trial.number, trial.overrides) for trial in ask_all(strategy)] == [
        (0, ("+experiment=top5", "batch_size=512", "model.hidden=[8]", *members)),
        (1, ("+experiment=top5", "batch_size=512", "model.hidden=[16,8]", *members)),
    ]


def test_without_swept_seeds_all_members_have_the_seed_of_the_run() -> None:
    swept = ("loss=huber", "loss.delta=0.1,0.5", "model.dropout=0,0.2", "seed=7")
    strategy, _ = population(*swept, "optimizer.weight_decay=0")
    (trial,) = ask_all(strategy)
    assert trial.overrides[-4:] == (
        "population.members=4",
        "population.delta=[0.1,0.1,0.5,0.5]",
        "population.dropout=[0,0.2,0,0.2]",
        "population.seeds=[7,7,7,7]",
    )


def test_a_resumed_population_sweep_asks_for_stopped_jobs_only() -> None:
    swept = ("optimizer.lr=0.001,0.01", "model.hidden=[4],[8],[16]")
    outcomes = by_number(drive(population(*swept)[0], lambda _: 0.1))
    outcomes[2] = outcome(outcomes[2].trial, state=STOPPED, reason="stopped")
    strategy, total = population(*swept, done=outcomes)
    assert total == 3
    assert [trial.number for trial in ask_all(strategy)] == [2]


def member(skill: float | None, *, fold: int = 0, frozen_at: int | None = None) -> dict[str, Any]:
    figures = {} if skill is None else {"val/skill": skill, "test/skill": 2 * skill}
    norm = 1.0 if skill is None else skill
    return {"seed": 0, "fold": fold, "frozen_at": frozen_at, "gradient_norm_max": norm} | figures


def member_rows(folder: Path, strategy: PopulationSearch, *members: dict[str, Any]) -> list[Any]:
    (folder / "members.json").write_text(json.dumps({"members": members}))
    trial = strategy.ask()
    assert trial is not None
    return list(strategy.rows(outcome(trial, 0.9, folder=folder)))


def test_each_member_has_a_row_with_its_own_settings_and_figures(tmp_path: Path) -> None:
    strategy, _ = population("optimizer.lr=0.001,0.01", "model.hidden=[8],[16]")
    first, second = member_rows(tmp_path, strategy, member(0.1), member(None, frozen_at=12))
    assert (first.number, first.member, first.state, first.reason) == (0, 0, FINISHED, None)
    common = {"experiment": "top5", "model.hidden": "[8]"}
    assert first.settings == {**common, "optimizer.lr": "0.001"}
    assert first.metrics["val/skill"] == 0.1  # its own, not the mean forecast's 0.9
    assert first.metrics["test/skill"] == 0.2
    assert (second.member, second.state) == (1, FAILED)
    assert second.reason == "frozen at step 12: a loss, gradient or weight is not finite"
    assert second.settings["optimizer.lr"] == "0.01"
    assert "val/skill" not in second.metrics


def test_the_figures_of_a_member_are_averaged_over_folds(tmp_path: Path) -> None:
    strategy, _ = population("optimizer.lr=0.001,0.01")
    folds = [member(0.1), member(0.2), member(0.3, fold=1), member(None, fold=1, frozen_at=5)]
    first, second = member_rows(tmp_path, strategy, *folds)
    assert first.metrics["val/skill"] == pytest.approx(0.2)
    assert first.metrics["train/gradient_norm_max"] == 0.3
    assert second.metrics["val/skill"] is None
    assert second.reason == "frozen at step 5 of fold 1: a loss, gradient or weight is not finite"


def test_a_failed_population_has_a_row_for_each_member() -> None:
    strategy, _ = population("optimizer.lr=0.001,0.01,0.1")
    trial = strategy.ask()
    assert trial is not None
    rows = strategy.rows(outcome(trial, state=FAILED, reason="no compiler"))
    assert [(row.member, row.state, row.reason) for row in rows] == [
        (number, FAILED, "no compiler") for number in range(3)
    ]


def test_sobol_points_become_members() -> None:
    space = {"optimizer": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}}
    strategy, total = population("model.dropout=interval(0,0.2)", trials=5, space=space)
    (trial,) = ask_all(strategy)
    assert total == 1
    assert trial.settings["population.members"] == "5"
    for key, low, high in (("lr", 1e-4, 1e-2), ("dropout", 0, 0.2)):
        values = json.loads(trial.settings[f"population.{key}"])
        assert len(set(values)) == 5
        assert all(low <= value <= high for value in values)


def test_combinations_vary_the_last_key_fastest() -> None:
    assert combinations(parse("a=1,2", "b=x,[y,z]")) == [
        {"a": "1", "b": "x"},
        {"a": "1", "b": "[y,z]"},
        {"a": "2", "b": "x"},
        {"a": "2", "b": "[y,z]"},
    ]
    assert combinations([]) == [{}]


@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        (("model.hidden=[8],[16]",), {}, r"no key that varies between members\. Sweep one of opt"),
        (("optimizer.lr=interval(0,1)",), {}, r"is an interval.* sweep\.trials=N"),
        (("seed=1,2", "population.members=3"), {}, r"population\.members=3 is set by sweep=pop"),
        (("seed=1,2",), {"trials": 0}, r"sweep\.trials=0"),
        ((), {"space": {"seed": {"low": 0, "high": 9}}}, r"sweep\.space needs a number of points"),
        (
            (),
            {"trials": 4, "space": {"batch_size": {"low": 8, "high": 64}}},
            r"sweep\.space\.batch_size cannot vary between members; only optimizer\.lr",
        ),
        ((), {"trials": 4}, r"no key that varies between members"),
    ],
)
def test_an_impossible_population_raises(
    texts: tuple[str, ...], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        population(*texts, **given)
