"""Populations, and the single runs that their members are compared with."""

import copy
import signal
from functools import cache
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from robust_fin.cli.composition import conf_folder
from robust_fin.data.datamodule import BarDataModule
from robust_fin.runs.training import fit_settings, hide_known_warnings, load_first_fold
from robust_fin.training.fitting import Fit, FitPlan, fit
from robust_fin.training.population.fit import fit_population
from tests.bars import config as composed
from tests.signals import TARGET

Weights = dict[str, Tensor]
GROUPS = {path.name for path in conf_folder().iterdir()}


class Foreign(nn.Module):
    """A user-defined net with a buffer, a frozen parameter and a submodule from its config."""

    def __init__(self, features: int, *, width: int, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(features, width), inner
        self.last = nn.Linear(width, 1, bias=False)
        self.shift = nn.Parameter(torch.rand(width), requires_grad=False)
        self.register_buffer("scale", torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x) * self.scale + self.shift)
        return self.last(nn.functional.gelu(self.inner(hidden))).squeeze(-1)


class PoisonAt(L.Callback):
    """Sets a weight of one member to NaN before the first call that begins at or after a step."""

    def __init__(self, step: int, member: int) -> None:
        self.step, self.member, self.done = step, member, False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        if trainer.global_step >= self.step and not self.done:
            pl_module.states.weights[self.member, 3] = float("nan")
            self.done = True


@cache
def _composed(*choices: str) -> DictConfig:
    """Compose once; Hydra takes longer than the run."""
    return composed(
        "+experiment=smoke", "trainer.enable_progress_bar=false", "cache.folder=null",
        "split.refit=false", *choices,
    )  # fmt: skip


def settings(engine: str, *overrides: str, model: dict[str, object] | None = None) -> DictConfig:
    """Compose a short run without refit, 35 steps of 256 rows per epoch.

    Args:
        engine: choice of the group `engine`.
        overrides: further overrides.
        model: replaces the config of the net.
    """
    choices = [one for one in overrides if one.partition("=")[0] in GROUPS]
    values = OmegaConf.from_dotlist([one for one in overrides if one not in choices])
    chosen = OmegaConf.merge(_composed(f"engine={engine}", *choices), values)
    assert isinstance(chosen, DictConfig)
    if model is not None:
        with open_dict(chosen):
            chosen.model = OmegaConf.create(model)
    return chosen


def with_callback(config: DictConfig, target: str, **values: int | str) -> DictConfig:
    """Return the config with another callback."""
    chosen = copy.deepcopy(config)
    with open_dict(chosen):
        chosen.callbacks.added = {"_target_": target, **values}
    return chosen


def stopped_at(config: DictConfig, step: int) -> DictConfig:
    """Return the config with a Ctrl-C after the call that ends with this step."""
    options = {"hook": "on_train_batch_end", "step": step, "number": int(signal.SIGINT), "times": 1}
    return with_callback(config, TARGET, **options, refit=False)


def bars_of(config: DictConfig) -> BarDataModule:
    hide_known_warnings()
    torch.set_num_threads(1)
    return load_first_fold(config)


def train_single(
    folder: Path, config: DictConfig, data: BarDataModule, *, order_seed: int | None = None
) -> Fit:
    """Train one net with the config's seed; `order_seed` shuffles the rows (default: the seed)."""
    own = copy.copy(data)
    own.seed, own.calls = config.seed if order_seed is None else order_seed, None
    return fit(fit_settings(config), own, FitPlan(folder, stage="", max_steps=None, resume=False))


def train_members(
    folder: Path, config: DictConfig, *data: BarDataModule, resume: bool = False
) -> tuple[Fit, ...]:
    """Train a population on each fold."""
    plan = FitPlan(folder, "", max_steps=None, resume=resume)
    return fit_population(fit_settings(config), data, plan)


def single_weights(fitted: Fit) -> Weights:
    return {name: value.detach().clone() for name, value in fitted.nets.net.state_dict().items()}


def member_weights(fitted: Fit, place: int) -> Weights:
    """Return the weights of the member at this position among those not frozen."""
    assert fitted.nets.stack is not None
    return {name: value[place] for name, value in fitted.nets.stack.items()}


def same(one: Weights, other: Weights) -> bool:
    """Compare bit for bit."""
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def relative(one: Weights, other: Weights) -> float:
    """Return the L2 norm of the difference over that of `other`."""
    a, b = (torch.cat([w[name].double().flatten() for name in other]) for w in (one, other))
    return float((a - b).norm() / b.norm())


def equal(one: Fit, other: Fit) -> bool:
    """Compare members, their chosen steps, and their weights bit for bit."""
    assert one.members == other.members
    places = range(one.nets.members)
    return all(same(member_weights(one, k), member_weights(other, k)) for k in places)
