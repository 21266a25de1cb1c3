"""A member of a population equals the single run that it stands for; curves."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import Interrupted, NonFiniteError
from robust_fin.training.engine.steps import StepResult
from robust_fin.training.fitting import Fit
from robust_fin.training.population.module import draw_curves
from tests.populations import (
    bars_of,
    equal,
    member_weights,
    relative,
    same,
    settings,
    single_weights,
    stopped_at,
    train_members,
    train_single,
    with_callback,
)

FOREIGN = {
    "_target_": "tests.populations.Foreign",
    "width": 6,
    "inner": {"_target_": "torch.nn.Linear", "in_features": 6, "out_features": 6},
}
POISON = "tests.populations.PoisonAt"
COMMON = ("population.members=3", "model.dropout=0.1", "population.steps_per_call=8")


@pytest.fixture(scope="module")
def data() -> BarDataModule:
    return bars_of(settings("plain"))


@pytest.fixture(scope="module")
def whole_run(data: BarDataModule, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fit, Path]:
    """Three compiled members, which others must equal; and their folder."""
    folder = tmp_path_factory.mktemp("whole")
    config = settings("compiled", *COMMON, "trainer.log_every_n_steps=1")
    return train_members(folder, config, data)[0], folder


# ---------------------------------------------------------------- members against single runs


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (("model.dropout=0.1", "trainer.max_steps=41", "population.steps_per_call=16"), 41),
        (("split.val_fraction=0", "model.dropout=0.1"), 80),
        (
            (
                "trainer.limit_train_batches=25",
                "trainer.val_check_interval=10",
                "population.steps_per_call=4",
            ),
            50,
        ),
        pytest.param(("trainer.max_steps=10",), 10, marks=pytest.mark.slow),
        pytest.param(("trainer.limit_train_batches=0.5",), 34, marks=pytest.mark.slow),
        pytest.param(("trainer.val_check_interval=7",), 70, marks=pytest.mark.slow),
        pytest.param(("trainer.num_sanity_val_steps=1",), 70, marks=pytest.mark.slow),
        pytest.param(("trainer.check_val_every_n_epoch=2",), 70, marks=pytest.mark.slow),
        pytest.param(
            ("checkpoint.monitor=val/mae", "checkpoint.mode=min"), 70, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_compiled_members_equal_single_runs_bit_for_bit(
    tmp_path: Path, data: BarDataModule, words: tuple[str, ...], steps: int
) -> None:
    own = [word for word in words if not word.startswith("population.")]
    if "split.val_fraction=0" in words:
        data = bars_of(settings("compiled", *own))
    config = settings("compiled", *words, "population.members=2", "seed=3")
    (found,) = train_members(tmp_path / "members", config, data)
    single = train_single(tmp_path / "alone", settings("compiled", *own, "seed=4"), data)
    assert found.members[1].settings["seed"] == 4
    assert found.members[1].chosen_step == single.summary.chosen_step
    assert found.members[1].frozen_at is None
    assert same(member_weights(found, 1), single_weights(single))
    assert found.summary.steps == single.summary.steps == steps
    assert found.summary.member_steps == 2 * steps


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.max_steps=41", "trainer.val_check_interval=10"),
        pytest.param(
            ("split.val_fraction=0", "trainer.limit_train_batches=20"), marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_stacked_members_match_plain_single_runs_up_to_rounding(
    tmp_path: Path, data: BarDataModule, words: tuple[str, ...]
) -> None:
    if "split.val_fraction=0" in words:
        data = bars_of(settings("plain", *words))
    (found,) = train_members(tmp_path, settings("plain", *words, "population.members=2"), data)
    single = train_single(tmp_path / "1", settings("plain", *words, "seed=1"), data)
    assert found.members[1].chosen_step == single.summary.chosen_step
    assert relative(member_weights(found, 1), single_weights(single)) < 1e-5
    assert found.summary.steps == single.summary.steps


@pytest.mark.parametrize("engine", ["compiled", pytest.param("plain", marks=pytest.mark.slow)])
def test_foreign_net_matches_its_single_run(
    tmp_path: Path, data: BarDataModule, engine: str
) -> None:
    config = settings(engine, "population.members=2", model=FOREIGN)
    (found,) = train_members(tmp_path / "members", config, data)
    alone = settings(engine, "seed=1", model=FOREIGN)
    single = train_single(tmp_path / "1", alone, data)
    assert relative(member_weights(found, 1), single_weights(single)) < 1e-5
    assert engine == "plain" or same(member_weights(found, 1), single_weights(single))


def test_shared_order_uses_the_seed_of_the_run(tmp_path: Path, data: BarDataModule) -> None:
    """Initialisation and dropout are of the member's seed, the order of rows of the config's."""
    words = ("population.members=2", "population.order=shared", "seed=3")
    (found,) = train_members(
        tmp_path / "m", settings("compiled", "model.dropout=0.1", *words), data
    )
    assert [one.settings["order_seed"] for one in found.members] == [3, 3]
    alone = settings("compiled", "model.dropout=0.1", "seed=4")
    single = train_single(tmp_path / "1", alone, data, order_seed=3)
    assert same(member_weights(found, 1), single_weights(single))


def test_seed_rate_and_decay_of_a_member_equal_the_single_run(
    tmp_path: Path, data: BarDataModule
) -> None:
    given = ("seeds=[5,2]", "lr=[0.001,0.005]", "weight_decay=[0.0,0.3]", "members=2")
    words = [f"population.{word}" for word in given]
    (found,) = train_members(tmp_path / "members", settings("compiled", *words), data)
    own = ("seed=2", "optimizer.lr=0.005", "optimizer.weight_decay=0.3")
    single = train_single(tmp_path / "alone", settings("compiled", *own), data)
    assert same(member_weights(found, 1), single_weights(single))
    asked = {"seed": 5, "order_seed": 5, "lr": 0.001, "weight_decay": 0.0}
    assert asked.items() <= found.members[0].settings.items()


@pytest.mark.parametrize("engine", ["plain", pytest.param("compiled", marks=pytest.mark.slow)])
def test_delta_and_dropout_of_a_member_match_the_single_run(
    tmp_path: Path, data: BarDataModule, engine: str
) -> None:
    given = ("delta=[0.3,0.05]", "dropout=[0.25,0.0]", "lr=[0.003,0.001]", "members=2")
    words = ("loss=huber", "model.dropout=0.1", *(f"population.{word}" for word in given))
    (found,) = train_members(tmp_path / "members", settings(engine, *words), data)
    for k, own in enumerate(
        (
            ("loss.delta=0.3", "model.dropout=0.25"),
            ("loss.delta=0.05", "model.dropout=0", "optimizer.lr=0.001"),
        )
    ):
        if engine == "plain" and k == 0:
            continue  # Lightning's own steps draw other masks
        alone = settings(engine, "loss=huber", *own, f"seed={k}")
        single = train_single(tmp_path / str(k), alone, data)
        assert relative(member_weights(found, k), single_weights(single)) < 1e-5
    assert [one.settings["dropout"] for one in found.members] == [0.25, 0.0]
    assert [one.settings["delta"] for one in found.members] == [0.3, 0.05]


# --------------------------------------------------------------- what must not change the numbers


@pytest.mark.parametrize(
    "words",
    [
        ("population.workers=3", "population.steps_per_call=5"),
        pytest.param(("population.steps_per_call=1",), marks=pytest.mark.slow),
        pytest.param(("population.steps_per_call=1000",), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_workers_and_calls_do_not_change_compiled_members(
    tmp_path: Path, data: BarDataModule, whole_run: tuple[Fit, Path], words: tuple[str, ...]
) -> None:
    (other,) = train_members(tmp_path, settings("compiled", *COMMON, *words), data)
    assert equal(other, whole_run[0])


@pytest.mark.slow
def test_workers_and_calls_do_not_change_stacked_members(
    tmp_path: Path, data: BarDataModule
) -> None:
    common = (*COMMON, "population.block=1", "trainer.max_steps=20")
    (whole,) = train_members(tmp_path / "a", settings("plain", *common), data)
    words = ("population.workers=3", "population.steps_per_call=3")
    (other,) = train_members(tmp_path / "b", settings("plain", *common, *words), data)
    assert equal(other, whole)


@pytest.mark.parametrize(
    "step",
    [
        35,  # the end of an epoch
        pytest.param(16, marks=pytest.mark.slow),
        pytest.param(43, marks=pytest.mark.slow),
        pytest.param(67, marks=pytest.mark.slow),
    ],
)
def test_stopped_population_resumes_bit_for_bit(
    tmp_path: Path, data: BarDataModule, whole_run: tuple[Fit, Path], step: int
) -> None:
    config = settings("compiled", *COMMON)
    with pytest.raises(Interrupted, match=f"stopped after step {step}; "):
        train_members(tmp_path, stopped_at(config, step), data)
    kept = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == step
    (resumed,) = train_members(tmp_path, config, data, resume=True)
    assert equal(resumed, whole_run[0])
    assert resumed.summary.steps == 70


@pytest.mark.slow
def test_finished_population_resumes_with_more_epochs(tmp_path: Path, data: BarDataModule) -> None:
    words = ("population.members=2", "schedule=warmup_constant", "schedule.warmup=20")
    (whole,) = train_members(tmp_path / "whole", settings("compiled", *words), data)
    less = settings("compiled", *words, "trainer.max_epochs=1")
    train_members(tmp_path / "split", less, data)
    (more,) = train_members(tmp_path / "split", settings("compiled", *words), data, resume=True)
    assert equal(more, whole)


# ------------------------------------------------------------------------ non-finite members


@pytest.mark.parametrize(
    ("engine", "lr"),
    [
        ("compiled", "1e38"),  # overflows a weight
        pytest.param("compiled", "1e30", marks=pytest.mark.slow),  # overflows a loss
        pytest.param("plain", "1e38", marks=pytest.mark.slow),
        pytest.param("plain", "1e30", marks=pytest.mark.slow),
    ],
)
def test_nonfinite_member_is_frozen_and_the_others_keep_every_bit(
    tmp_path: Path,
    data: BarDataModule,
    caplog: pytest.LogCaptureFixture,
    engine: str,
    lr: str,
) -> None:
    words = ("population.members=3", "trainer.max_epochs=1", "population.steps_per_call=8")
    (healthy,) = train_members(tmp_path / "a", settings(engine, *words), data)
    sick = settings(engine, *words, f"population.lr=[0.003,{lr},0.003]")
    with caplog.at_level(logging.WARNING):
        (found,) = train_members(tmp_path / "b", sick, data)
    fate = found.members[1]
    assert fate.frozen_at is not None
    assert 1 <= fate.frozen_at <= 8
    assert [one.frozen_at for one in found.members] == [None, fate.frozen_at, None]
    assert f"member 1 (seed 1) is frozen at its step {fate.frozen_at}: " in caplog.text
    assert found.nets.members == 2
    for place, k in enumerate((0, 2)):
        assert found.members[k].chosen_step == healthy.members[k].chosen_step
        assert same(member_weights(found, place), member_weights(healthy, k))
    kept = torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(one.isfinite().all() for one in kept.values())


def test_nan_weight_freezes_only_its_member(
    tmp_path: Path, data: BarDataModule, whole_run: tuple[Fit, Path]
) -> None:
    config = with_callback(settings("compiled", *COMMON), POISON, step=40, member=0)
    (found,) = train_members(tmp_path, config, data)
    assert [one.frozen_at for one in found.members] == [43, None, None]
    for place, k in enumerate((1, 2)):
        assert same(member_weights(found, place), member_weights(whole_run[0], k))


@pytest.mark.slow
def test_frozen_member_stays_frozen_after_resume(tmp_path: Path, data: BarDataModule) -> None:
    words = ("population.members=2", "population.lr=[0.003,1e30]", "population.steps_per_call=8")
    (whole,) = train_members(tmp_path / "a", settings("compiled", *words), data)
    config = settings("compiled", *words)
    with pytest.raises(Interrupted):
        train_members(tmp_path / "b", stopped_at(config, 16), data)
    (resumed,) = train_members(tmp_path / "b", config, data, resume=True)
    assert resumed.members[1].frozen_at is not None
    assert equal(resumed, whole)


def test_run_ends_with_an_error_if_all_members_are_frozen(
    tmp_path: Path, data: BarDataModule
) -> None:
    words = ("population.members=2", "population.lr=[1e30,1e38]")
    with pytest.raises(NonFiniteError, match="all 2 members are frozen by step 0: a loss"):
        train_members(tmp_path, settings("compiled", *words), data)


# ------------------------------------------------------------------------- callbacks and curves


def test_early_stopping_monitors_the_mean_forecast(tmp_path: Path, data: BarDataModule) -> None:
    """At a rate of 0 nothing improves: two epochs without a better mean, and the run stops."""
    words = (
        "population.members=2", "population.lr=[0,0]", "trainer.max_epochs=9",
        "callbacks=early_stopping", "callbacks.early_stopping.patience=2",
    )  # fmt: skip
    (found,) = train_members(tmp_path, settings("compiled", *words), data)
    assert found.summary.steps == 3 * 35
    assert [one.chosen_step for one in found.members] == [35, 35]


def test_band_of_the_members_is_logged_at_optimizer_steps(whole_run: tuple[Fit, Path]) -> None:
    events = EventAccumulator(str(whole_run[1] / "tensorboard")).Reload()
    points = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    due, validated = list(range(70)), [34, 69]
    for part in ("mean", "low", "high"):
        assert list(points[f"members/train/objective_{part}"]) == due
        assert list(points[f"members/val/skill_{part}"]) == validated
        assert list(points[f"members/val/rank_ic_{part}"]) == validated
    assert list(points["train/objective"]) == due
    assert list(points["val/skill"]) == validated
    for name, steps in (("train/objective", due), ("val/skill", validated)):
        low, mean, high = (points[f"members/{name}_{part}"] for part in ("low", "mean", "high"))
        assert all(low[at] < mean[at] < high[at] for at in steps)
    assert points["train/objective"] == points["members/train/objective_mean"]
    last_epoch = [points["train/objective"][at] for at in range(35, 70)]
    mean = sum(last_epoch) / len(last_epoch)
    assert whole_run[0].summary.objective == pytest.approx(mean, rel=1e-6)
    assert all(points["val/skill"][at] != points["members/val/skill_mean"][at] for at in validated)


class Kept(DummyLogger):
    """Keeps the points it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int, **_: Any) -> None:
        self.points[step] = metrics


def result(losses: list[float]) -> StepResult:
    loss = torch.tensor(losses)
    return StepResult(loss, 10 * loss, None)


def drawn(results: list[StepResult], *, first: int, count: int, every: int) -> dict[int, Any]:
    kept = Kept()
    draw_curves([kept], results, first=first, count=count, every=every)
    return kept.points


def test_point_is_mean_and_central_95_percent_over_members() -> None:
    members = [result([float(k), 100.0 + k]) for k in range(41)]
    points = drawn(members, first=0, count=2, every=1)
    assert list(points) == [0, 1]
    for step, least in ((0, 0.0), (1, 100.0)):
        low, high = np.percentile(least + np.arange(41), [2.5, 97.5])
        assert points[step] == {
            "members/train/objective_mean": pytest.approx(least + 20),
            "members/train/objective_low": pytest.approx(low),
            "members/train/objective_high": pytest.approx(high),
            "train/objective": pytest.approx(least + 20),
            "train/gradient_norm": pytest.approx(10 * (least + 20)),
            "members/train/gradient_norm_max": pytest.approx(10 * (least + 40)),
        }


@pytest.mark.parametrize(
    ("first", "every", "due"),
    [(0, 5, [4, 9]), (8, 5, [9, 14, 19]), (3, 1, list(range(3, 15))), (0, 50, []), (40, 50, [49])],
)
def test_points_are_logged_every_n_optimizer_steps(first: int, every: int, due: list[int]) -> None:
    losses = [result([float(first + at) for at in range(12)])]
    points = drawn(losses, first=first, count=12, every=every)
    assert list(points) == due
    assert [point["train/objective"] for point in points.values()] == due


@pytest.mark.parametrize("count", [49, 98, 103, 1024])
def test_every_step_of_a_window_can_be_logged(count: int) -> None:
    losses = [result([float(at) for at in range(count)])]
    points = drawn(losses, first=0, count=count, every=1)
    assert [point["train/objective"] for point in points.values()] == list(range(count))


def test_member_with_fewer_steps_is_logged_at_its_share_of_the_window() -> None:
    slow, fast = result([0.0, 1.0]), result([0.0] * 6)
    points = drawn([slow, fast], first=0, count=6, every=1)
    assert [2 * point["train/objective"] for point in points.values()] == [0, 0, 0, 1, 1, 1]


def test_nothing_is_logged_if_all_members_are_frozen() -> None:
    assert drawn([], first=0, count=5, every=1) == {}
