"""A fit of several data sets, its initial nets, its fallback and its unsupported settings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from robust_fin.data.batches import ScoredBatch
from robust_fin.data.datamodule import BarDataModule, MemberData, PopulationDataModule
from robust_fin.errors import ConfigError, NonFiniteError
from robust_fin.runs.training import fit_settings
from robust_fin.training.assembly import make_trainer
from robust_fin.training.engine.build import trainer_arguments
from robust_fin.training.fitting import FitPlan
from robust_fin.training.population.fit import check_optimizer, initial_nets, make_population
from robust_fin.training.population.members import make_members
from robust_fin.training.population.module import PopulationForecaster
from tests.populations import (
    bars_of,
    equal,
    member_weights,
    relative,
    same,
    settings,
    single_weights,
    train_members,
    train_single,
)
from tests.training.engine.drift import SAMPLE, Drift

FEWER = "source.synthetic.rows=14000"  # 19 steps an epoch instead of 35
NESTED = {
    "_target_": "tests.populations.Foreign",
    "width": 6,
    "inner": {"_target_": "torch.nn.Linear", "in_features": 6, "out_features": 6},
}


@pytest.fixture(scope="module")
def more() -> BarDataModule:
    return bars_of(settings("plain"))


@pytest.fixture(scope="module")
def fewer() -> BarDataModule:
    return bars_of(settings("plain", FEWER))


def fit_sets(folder: Path, config: DictConfig, sets: Sequence[MemberData]) -> PopulationForecaster:
    """Fit a population on the data sets, without callbacks."""
    asked = fit_settings(config)
    module = make_population(asked, sets, FitPlan(folder, "", max_steps=None, resume=False))
    plan = module.pace.plan
    trainer: L.Trainer = make_trainer(
        asked, folder, [], stage="", has_val=True,
        arguments=trainer_arguments(asked.trainer, plan) | {"enable_checkpointing": False},
    )  # fmt: skip
    trainer.fit(module, PopulationDataModule(sets, plan))
    return module


@pytest.mark.parametrize("engine", ["compiled", pytest.param("plain", marks=pytest.mark.slow)])
def test_members_on_data_sets_of_different_sizes_match_single_runs(
    tmp_path: Path, more: BarDataModule, fewer: BarDataModule, engine: str
) -> None:
    config = settings(engine, "population.members=2", "population.steps_per_call=8")
    found = train_members(tmp_path / "members", config, more, fewer)
    assert [one.nets.members for one in found] == [2, 2]
    for number, (fitted, data) in enumerate(zip(found, (more, fewer), strict=True)):
        single = train_single(tmp_path / str(number), settings(engine, "seed=1"), data)
        assert single.summary.steps == (70, 38)[number]
        assert fitted.members[1].settings["data"] == number
        assert fitted.members[1].chosen_step == single.summary.chosen_step
        assert relative(member_weights(fitted, 1), single_weights(single)) < 1e-5
        assert engine == "plain" or same(member_weights(fitted, 1), single_weights(single))
    assert found[0].summary.steps == 70
    assert found[0].summary.member_steps == 2 * 70 + 2 * 38


def test_subset_of_rows_equals_a_copied_data_set(tmp_path: Path, more: BarDataModule) -> None:
    whole = MemberData.from_datamodule(more)
    draw = torch.Generator().manual_seed(0)
    rows = torch.randperm(whole.size, generator=draw)[:3000]
    some = replace(whole, rows=rows)
    copied = replace(whole, x=whole.x[rows], target=whole.target[rows])
    config = settings("compiled", "trainer.max_epochs=1")
    module = fit_sets(tmp_path, config, [some, copied, whole])
    assert module.states.count.tolist() == [11, 11, 35]
    assert torch.equal(module.states.weights[0], module.states.weights[1])
    assert torch.equal(module.states.best[0], module.states.best[1])
    assert not torch.equal(module.states.weights[0], module.states.weights[2])


def test_data_set_without_val_keeps_its_last_weights(tmp_path: Path, more: BarDataModule) -> None:
    whole = MemberData.from_datamodule(more)
    none = ScoredBatch(*(part[:0] for part in whole.val))
    config = settings("compiled", "trainer.max_epochs=1", "population.steps_per_call=16")
    module = fit_sets(tmp_path, config, [whole, replace(whole, val=none)])
    assert module.states.best_count.tolist() == [35, 35]
    assert torch.equal(module.states.best[1], module.states.weights[1])


@pytest.mark.slow
def test_poisoned_data_set_does_not_change_the_other(
    tmp_path: Path, more: BarDataModule, fewer: BarDataModule
) -> None:
    good, other = MemberData.from_datamodule(more), MemberData.from_datamodule(fewer)
    x = other.x.clone()
    x[:, 0] = float("nan")
    config = settings("compiled", "trainer.max_epochs=1")
    healthy = fit_sets(tmp_path / "a", config, [good, other])
    poisoned = fit_sets(tmp_path / "b", config, [good, replace(other, x=x)])
    assert poisoned.states.frozen_at.tolist() == [-1, 0]
    assert torch.equal(poisoned.states.best[0], healthy.states.best[0])


def test_run_ends_with_an_error_if_all_members_of_a_fold_are_frozen(
    tmp_path: Path, more: BarDataModule, fewer: BarDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned = float("nan") * torch.ones(fewer.fitted.fold.train.size, 5)
    tensors = (poisoned, fewer.train_tensors()[1])
    monkeypatch.setattr(fewer, "train_tensors", lambda: tensors)
    with pytest.raises(NonFiniteError, match="all members of fold 1 are frozen: a loss or grad"):
        train_members(tmp_path, settings("compiled", "trainer.max_epochs=1"), more, fewer)


def test_data_set_smaller_than_a_batch_raises(tmp_path: Path, more: BarDataModule) -> None:
    few = replace(MemberData.from_datamodule(more), rows=torch.arange(255))
    with pytest.raises(ConfigError, match="data set 1 has 255 training rows, fewer than batch_siz"):
        fit_sets(tmp_path, settings("plain"), [MemberData.from_datamodule(more), few])


@pytest.mark.parametrize("model", [None, NESTED], ids=["residual_mlp", "parts of its own"])
def test_initial_net_of_a_member_equals_that_of_the_single_run(
    model: dict[str, object] | None,
) -> None:
    config = settings("plain", "population.members=3", "model.head_start=null", "seed=2")
    if model is not None:
        config = settings("plain", "population.members=3", "seed=2", model=model)
    asked = fit_settings(config)
    nets = initial_nets(asked, make_members(asked, sets=1), features=5)
    for k, net in enumerate(nets):
        L.seed_everything(2 + k, verbose=False)
        alone = instantiate(config.model, features=5).state_dict()
        assert all(torch.equal(value, alone[name]) for name, value in net.state_dict().items())
    assert not torch.equal(*(next(net.parameters()) for net in nets[:2]))
    assert nets[0] is not nets[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("optimizer.betas=[2.0,0.9]",), "the optimizer rejects its settings: Invalid beta param"),
        (("optimizer._target_=torch.optim.Adam",), "this is Adam with 1 groups"),
    ],
)
def test_unsupported_optimizer_raises(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_optimizer(fit_settings(settings("plain", *words)), torch.nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.precision=bf16-mixed", "trainer.precision=bf16-mixed is not for a population"),
        ("trainer.accumulate_grad_batches=2", "accumulate_grad_batches=2 is not for a population"),
        ("trainer.gradient_clip_algorithm=value", "algorithm=value is not for a population"),
        ("trainer.overfit_batches=3", "trainer.overfit_batches=3 is not for a population"),
        ("trainer.limit_val_batches=3", "trainer.limit_val_batches=3 is not for a population"),
        ("trainer.val_check_interval=36", "trainer.val_check_interval=36 is longer than an epoch"),
        ("population.workers=0", "population.workers=0 must be a whole number above 0"),
        ("population.workers=two", "population.workers=two must be"),
        ("population.steps_per_call=0", r"population\.steps_per_call=0 must be above 0"),
        ("population.steps_per_call=many", r"population\.steps_per_call=many must be above 0"),
        ("population.block=0", "population.block=0 must be a whole number above 0"),
        ("population.block=-1", "population.block=-1 must be"),
        ("population.block=some", "population.block=some must be"),
        ("population.delta=[0.1,0.2]", "population.delta needs a loss with a delta"),
        ("schedule.warmup=-1", "schedule.warmup=-1"),
    ],
)
def test_unsupported_settings_raise(
    tmp_path: Path, more: BarDataModule, word: str, message: str
) -> None:
    config = settings("plain", "population.members=2", word)
    with pytest.raises(ConfigError, match=message):
        train_members(tmp_path, config, more)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("drift", SAMPLE, ids=lambda drift: drift.__name__)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_changed_torch_falls_back_to_stacked_members_with_one_warning(
    tmp_path: Path,
    fewer: BarDataModule,
    drift: Drift,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ("population.members=2", "population.block=2", "trainer.max_epochs=1")
    (plain,) = train_members(tmp_path / "plain", settings("plain", *words), fewer)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    drift(monkeypatch)
    (fallback,) = train_members(tmp_path / "compiled", settings("compiled", *words), fewer)
    assert equal(fallback, plain)
    assert fallback.summary.steps == 19
    warnings = [r.getMessage() for r in caplog.records if "does not work with" in r.getMessage()]
    assert len(warnings) == 1
    assert f"torch {torch.__version__}: " in warnings[0]
    assert warnings[0].endswith("the plain engine trains, slower and with the same numbers")
