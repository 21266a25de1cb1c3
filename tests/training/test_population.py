"""A member of a population is the run of its own that it stands for."""

import logging
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import Interrupted, NonFiniteError
from robust_fin.training.fitting import Fit
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


# each member against the run of its own


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
def test_compiled_members_are_the_single_runs_bit_for_bit(
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
def test_stacked_members_are_the_plain_single_runs_but_for_rounding(
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
def test_a_net_that_is_not_ours(tmp_path: Path, data: BarDataModule, engine: str) -> None:
    config = settings(engine, "population.members=2", model=FOREIGN)
    (found,) = train_members(tmp_path / "members", config, data)
    alone = settings(engine, "seed=1", model=FOREIGN)
    single = train_single(tmp_path / "1", alone, data)
    assert relative(member_weights(found, 1), single_weights(single)) < 1e-5
    assert engine == "plain" or same(member_weights(found, 1), single_weights(single))


def test_a_shared_order_is_that_of_the_runs_seed(tmp_path: Path, data: BarDataModule) -> None:
    """Initialisation and dropout are of the member's seed, the order of rows of the config's."""
    words = ("population.members=2", "population.order=shared", "seed=3")
    (found,) = train_members(
        tmp_path / "m", settings("compiled", "model.dropout=0.1", *words), data
    )
    assert [one.settings["order_seed"] for one in found.members] == [3, 3]
    alone = settings("compiled", "model.dropout=0.1", "seed=4")
    single = train_single(tmp_path / "1", alone, data, order_seed=3)
    assert same(member_weights(found, 1), single_weights(single))


def test_seed_rate_and_decay_are_each_members_own_bit_for_bit(
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
def test_delta_and_dropout_are_each_members_own(
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


# what must not change a bit


@pytest.mark.parametrize(
    "words",
    [
        ("population.workers=3", "population.steps_per_call=5"),
        pytest.param(("population.steps_per_call=1",), marks=pytest.mark.slow),
        pytest.param(("population.steps_per_call=1000",), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_workers_and_calls_change_nothing(
    tmp_path: Path, data: BarDataModule, whole_run: tuple[Fit, Path], words: tuple[str, ...]
) -> None:
    (other,) = train_members(tmp_path, settings("compiled", *COMMON, *words), data)
    assert equal(other, whole_run[0])


@pytest.mark.slow
def test_workers_and_calls_change_nothing_of_stacked_members(
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
def test_a_population_that_was_stopped_goes_on_bit_for_bit(
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
def test_a_population_goes_on_with_more_epochs(tmp_path: Path, data: BarDataModule) -> None:
    words = ("population.members=2", "schedule=warmup_constant", "schedule.warmup=20")
    (whole,) = train_members(tmp_path / "whole", settings("compiled", *words), data)
    less = settings("compiled", *words, "trainer.max_epochs=1")
    train_members(tmp_path / "split", less, data)
    (more,) = train_members(tmp_path / "split", settings("compiled", *words), data, resume=True)
    assert equal(more, whole)


# members that are not finite


@pytest.mark.parametrize(
    ("engine", "lr"),
    [
        ("compiled", "1e38"),  # overflows a weight
        pytest.param("compiled", "1e30", marks=pytest.mark.slow),  # overflows a loss
        pytest.param("plain", "1e38", marks=pytest.mark.slow),
        pytest.param("plain", "1e30", marks=pytest.mark.slow),
    ],
)
def test_a_member_that_is_not_finite_is_frozen_and_the_others_keep_every_bit(
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


def test_a_weight_made_nan_costs_that_member_alone(
    tmp_path: Path, data: BarDataModule, whole_run: tuple[Fit, Path]
) -> None:
    config = with_callback(settings("compiled", *COMMON), POISON, step=40, member=0)
    (found,) = train_members(tmp_path, config, data)
    assert [one.frozen_at for one in found.members] == [43, None, None]
    for place, k in enumerate((1, 2)):
        assert same(member_weights(found, place), member_weights(whole_run[0], k))


@pytest.mark.slow
def test_a_frozen_member_stays_frozen_over_an_interruption(
    tmp_path: Path, data: BarDataModule
) -> None:
    words = ("population.members=2", "population.lr=[0.003,1e30]", "population.steps_per_call=8")
    (whole,) = train_members(tmp_path / "a", settings("compiled", *words), data)
    config = settings("compiled", *words)
    with pytest.raises(Interrupted):
        train_members(tmp_path / "b", stopped_at(config, 16), data)
    (resumed,) = train_members(tmp_path / "b", config, data, resume=True)
    assert resumed.members[1].frozen_at is not None
    assert equal(resumed, whole)


def test_where_every_member_is_frozen_the_run_ends(tmp_path: Path, data: BarDataModule) -> None:
    words = ("population.members=2", "population.lr=[1e30,1e38]")
    with pytest.raises(NonFiniteError, match="all 2 members are frozen by step 0: a loss"):
        train_members(tmp_path, settings("compiled", *words), data)


# callbacks and curves


def test_early_stopping_watches_the_mean_forecast(tmp_path: Path, data: BarDataModule) -> None:
    """At a rate of 0 nothing improves: two epochs without a better mean, and the run stops."""
    words = (
        "population.members=2", "population.lr=[0,0]", "trainer.max_epochs=9",
        "callbacks=early_stopping", "callbacks.early_stopping.patience=2",
    )  # fmt: skip
    (found,) = train_members(tmp_path, settings("compiled", *words), data)
    assert found.summary.steps == 3 * 35
    assert [one.chosen_step for one in found.members] == [35, 35]


def test_the_band_of_the_members_is_drawn_at_optimizer_steps(whole_run: tuple[Fit, Path]) -> None:
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
