from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from robust_fin.errors import ConfigError
from robust_fin.sweeps.local import Executor, LocalExecutor
from robust_fin.sweeps.strategy import FAILED, FINISHED, STOPPED, Grid, Outcome, Strategy, Trial
from tests.sweeps.fake_jobs import FakeExecutor

parse = OverridesParser.create().parse_overrides
HERE = Path("sweep")


def asked(grid: Grid) -> list[tuple[int, tuple[str, ...]]]:
    found = []
    while (trial := grid.ask()) is not None:
        found.append((trial.number, trial.overrides))
    return found


def ended(number: int, state: str, *overrides: str) -> Outcome:
    return Outcome(Trial(number, overrides), HERE / str(number), state, None, {}, 1.0)


def test_the_protocols_are_held() -> None:
    assert isinstance(Grid(workers=1), Strategy)
    assert isinstance(LocalExecutor(), Executor)
    assert isinstance(FakeExecutor(), Executor)


def test_every_combination_once_the_last_key_fastest() -> None:
    grid = Grid(workers=1)
    words = ["optimizer.lr=0.1,1e-3", "+experiment=top5", "seed=range(2)", "model.hidden=[8],[4,2]"]
    assert grid.plan(parse(words), folder=HERE, done={}) == 8
    found = asked(grid)
    assert [number for number, _ in found] == list(range(8))
    assert found[0][1] == ("optimizer.lr=0.1", "+experiment=top5", "seed=0", "model.hidden=[8]")
    assert found[1][1][2:] == ("seed=0", "model.hidden=[4,2]")
    assert found[2][1][2:] == ("seed=1", "model.hidden=[8]")
    assert found[7][1] == ("optimizer.lr=0.001", "+experiment=top5", "seed=1", "model.hidden=[4,2]")
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
def test_the_lists_and_ranges_of_hydra(word: str, values: list[str]) -> None:
    grid = Grid(workers=1)
    assert grid.plan(parse([word]), folder=HERE, done={}) == len(values)
    assert [overrides for _, overrides in asked(grid)] == [(one,) for one in values]


def test_an_interval_is_refused() -> None:
    message = r"lr=interval\(0,1\) is an interval, of which .* or search it with sweep=optuna"
    with pytest.raises(ConfigError, match=message):
        Grid(workers=1).plan(parse(["lr=interval(0,1)"]), folder=HERE, done={})


def test_only_what_was_stopped_or_never_started_is_asked_for() -> None:
    done = {
        0: ended(0, FINISHED, "seed=0"),
        1: ended(1, STOPPED, "seed=1"),
        2: ended(2, FAILED, "seed=2"),
    }
    grid = Grid(workers=2)
    assert grid.plan(parse(["seed=range(4)"]), folder=HERE, done=done) == 4
    assert asked(grid) == [(1, ("seed=1",)), (3, ("seed=3",))]


def test_a_settings_table_reads_overrides() -> None:
    trial = Trial(0, ("+experiment=top5", "++a.b='x=y'", "~c", "model.hidden=[16,8]"))
    wanted = {"experiment": "top5", "a.b": "'x=y'", "c": "", "model.hidden": "[16,8]"}
    assert trial.settings == wanted
