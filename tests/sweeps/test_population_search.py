"""sweep=population without any training: jobs, members, and the rows made of members.json."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robust_fin.errors import ConfigError
from robust_fin.sweeps.population_search import PopulationSearch
from robust_fin.sweeps.search_space import Between, OneOf, combinations, points
from robust_fin.sweeps.strategy import FAILED, FINISHED, STOPPED, Trial
from tests.sweeps.driven import by_number, conf, drive, ended, words


@pytest.fixture(autouse=True)
def _conf() -> Iterator[None]:
    with conf():
        yield


def planned(*texts: str, done: Any = None, **given: Any) -> tuple[PopulationSearch, int]:
    usual = {"workers": 1, "trials": None, "space": None, "seed": 0}
    found = PopulationSearch(**usual | given)
    total = found.plan(words("+experiment=top5", *texts), folder=Path("sweep"), done=done or {})
    return found, total


def asked(strategy: PopulationSearch) -> list[Trial]:
    found = []
    while (trial := strategy.ask()) is not None:
        found.append(trial)
    return found


def test_what_members_can_differ_in_is_a_list_and_the_rest_makes_jobs() -> None:
    swept = (
        "optimizer.lr=0.001,0.01",
        "model.hidden=[8],[16,8]",
        "seed=range(2)",
        "batch_size=512",
    )
    strategy, total = planned(*swept)
    assert total == 2
    population = (
        "population.members=4",
        "population.lr=[0.001,0.001,0.01,0.01]",
        "population.seeds=[0,1,0,1]",
    )
    assert [(one.number, one.overrides) for one in asked(strategy)] == [
        (0, ("+experiment=top5", "batch_size=512", "model.hidden=[8]", *population)),
        (1, ("+experiment=top5", "batch_size=512", "model.hidden=[16,8]", *population)),
    ]


def test_without_a_list_of_seeds_all_members_have_that_of_the_single_run() -> None:
    swept = ("loss=huber", "loss.delta=0.1,0.5", "model.dropout=0,0.2", "seed=7")
    strategy, _ = planned(*swept, "optimizer.weight_decay=0")
    (trial,) = asked(strategy)
    assert trial.overrides[-4:] == (
        "population.members=4",
        "population.delta=[0.1,0.1,0.5,0.5]",
        "population.dropout=[0,0.2,0,0.2]",
        "population.seeds=[7,7,7,7]",
    )


def test_jobs_that_were_done_are_not_done_again() -> None:
    swept = ("optimizer.lr=0.001,0.01", "model.hidden=[4],[8],[16]")
    outcomes = by_number(drive(planned(*swept)[0], lambda _: 0.1))
    outcomes[2] = ended(outcomes[2].trial, state=STOPPED, reason="stopped")
    strategy, total = planned(*swept, done=outcomes)
    assert total == 3
    assert [one.number for one in asked(strategy)] == [2]


def member(skill: float | None, *, fold: int = 0, frozen_at: int | None = None) -> dict[str, Any]:
    figures = {} if skill is None else {"val/skill": skill, "test/skill": 2 * skill}
    norm = 1.0 if skill is None else skill
    return {"seed": 0, "fold": fold, "frozen_at": frozen_at, "gradient_norm_max": norm} | figures


def rows_of(folder: Path, strategy: PopulationSearch, members: list[dict[str, Any]]) -> list[Any]:
    (folder / "members.json").write_text(json.dumps({"members": members}))
    return list(strategy.rows(ended(strategy.ask(), 0.9, folder=folder)))


def test_a_row_a_member_with_its_own_settings_and_figures(tmp_path: Path) -> None:
    strategy, _ = planned("optimizer.lr=0.001,0.01", "model.hidden=[8],[16]")
    first, second = rows_of(tmp_path, strategy, [member(0.1), member(None, frozen_at=12)])
    assert (first.number, first.member, first.state, first.reason) == (0, 0, FINISHED, None)
    assert first.settings == {
        "experiment": "top5",
        "model.hidden": "[8]",
        "optimizer.lr": "0.001",
    }
    assert first.metrics["val/skill"] == 0.1  # its own, not the mean forecast's 0.9
    assert first.metrics["test/skill"] == 0.2
    assert (second.member, second.state) == (1, FAILED)
    assert second.reason == "frozen at step 12: a loss, gradient or weight is not finite"
    assert second.settings["optimizer.lr"] == "0.01"
    assert "val/skill" not in second.metrics


def test_several_folds_are_averaged_member_by_member(tmp_path: Path) -> None:
    strategy, _ = planned("optimizer.lr=0.001,0.01")
    folds = [member(0.1), member(0.2), member(0.3, fold=1), member(None, fold=1, frozen_at=5)]
    first, second = rows_of(tmp_path, strategy, folds)
    assert first.metrics["val/skill"] == pytest.approx(0.2)
    assert first.metrics["train/gradient_norm_max"] == 0.3
    assert second.metrics["val/skill"] is None
    assert second.reason == "frozen at step 5 of fold 1: a loss, gradient or weight is not finite"


def test_a_job_that_failed_is_a_row_a_member() -> None:
    strategy, _ = planned("optimizer.lr=0.001,0.01,0.1")
    rows = strategy.rows(ended(strategy.ask(), state=FAILED, reason="no compiler"))
    assert [(row.member, row.state, row.reason) for row in rows] == [
        (number, FAILED, "no compiler") for number in range(3)
    ]


def test_points_fill_the_space_evenly() -> None:
    space = {
        "optimizer.lr": Between(1e-4, 1e-2, log=True),
        "model.dropout": Between(0.0, 0.3, step=0.1),
        "seed": Between(0, 3, whole=True),
        "loss.delta": OneOf(("0.1", "0.5")),
    }
    found = points(space, 64, seed=0)
    assert found == points(space, 64, seed=0) != points(space, 64, seed=1)
    rates = [float(one["optimizer.lr"]) for one in found]
    assert [sum(low <= rate < 10 * low for rate in rates) for low in (1e-4, 1e-3)] == [32, 32]
    for key, values in {
        "model.dropout": ["0.0", "0.1", "0.2", "0.3"],
        "seed": ["0", "1", "2", "3"],
        "loss.delta": ["0.1", "0.5"],
    }.items():
        counts = [sum(one[key] == value for one in found) for value in values]
        assert counts == [64 // len(values)] * len(values), key


def test_points_become_members() -> None:
    space = {"optimizer": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}}
    strategy, total = planned("model.dropout=interval(0,0.2)", trials=5, space=space)
    (trial,) = asked(strategy)
    assert total == 1
    lists = {key: value for key, value in trial.settings.items() if key.startswith("population.")}
    assert lists["population.members"] == "5"
    for key, low, high in (("lr", 1e-4, 1e-2), ("dropout", 0, 0.2)):
        values = json.loads(lists[f"population.{key}"])
        assert len(set(values)) == 5
        assert all(low <= value <= high for value in values)


def test_combinations_go_through_the_last_key_fastest() -> None:
    swept = words("a=1,2", "b=x,[y,z]")
    assert combinations(swept) == [
        {"a": "1", "b": "x"},
        {"a": "1", "b": "[y,z]"},
        {"a": "2", "b": "x"},
        {"a": "2", "b": "[y,z]"},
    ]
    assert combinations([]) == [{}]


@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        (
            ("model.hidden=[8],[16]",),
            {},
            r"nothing that members could differ in\. Sweep one of opt",
        ),
        (("optimizer.lr=interval(0,1)",), {}, r"no end of values; .* sweep\.trials"),
        (("seed=1,2", "population.members=3"), {}, r"population\.members=3 is what sweep=pop"),
        (("seed=1,2",), {"trials": 0}, r"sweep\.trials=0"),
        ((), {"space": {"seed": {"low": 0, "high": 9}}}, r"sweep\.space needs a number of points"),
        (
            (),
            {"trials": 4, "space": {"batch_size": {"low": 8, "high": 64}}},
            r"sweep\.space\.batch_size is nothing that members can differ in; those are optimizer",
        ),
        ((), {"trials": 4}, r"nothing that members could differ in"),
    ],
)
def test_what_no_population_can_be_is_refused(
    texts: tuple[str, ...], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(*texts, **given)
