"""Faults injected into a fit: a single bad number at a given place and optimizer step."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from robust_fin.data.datamodule import BarDataModule
from robust_fin.runs.training import fit_settings, hide_known_warnings
from robust_fin.training import fitting, losses
from robust_fin.training.fitting import Fit, FitPlan, fit
from robust_fin.training.module import Forecaster
from robust_fin.training.settings import FitSettings
from tests.bars import config

BATCHES = 12  # of the only epoch
PLACES = ("feature", "target", "loss", "gradient", "weight")
VALUES = ("nan", "inf", "1e30")
MOMENTS = {"first": 0, "middle": BATCHES // 2, "last": BATCHES - 1}
SETUPS = (  # engine, precision, batches a step
    ("plain", "32-true", 1),
    ("plain", "32-true", 2),
    ("plain", "bf16-mixed", 1),
    ("plain", "bf16-mixed", 2),
    ("compiled", "32-true", 1),
)
POLICIES = ("stop", "rollback")
SIGNAL = 71.0  # target of the row whose loss or gradient goes wrong, plus the number of the fault


@dataclass(frozen=True, slots=True)
class Fault:
    """A case of the fault matrix.

    Attributes:
        place: where the number is injected.
        value: the number, as text.
        moment: first, middle or last step.
        engine: plain or compiled.
        precision: of the Trainer.
        batches: per optimizer step.
        policy: stability.on_nonfinite.
    """

    place: str
    value: str
    moment: str
    engine: str
    precision: str
    batches: int
    policy: str

    @property
    def step(self) -> int:
        """Optimizer step that is affected."""
        return MOMENTS[self.moment] // self.batches

    @property
    def last_step(self) -> int:
        """Number of the last optimizer step."""
        return -(-BATCHES // self.batches) - 1

    @property
    def number(self) -> float:
        """The number that is injected."""
        return float(self.value)

    @property
    def passes(self) -> bool:
        """True if training is unaffected: a large finite loss leaves the gradient unchanged."""
        return (self.place, self.value) == ("loss", "1e30")

    @property
    def heals(self) -> bool:
        """True if a rollback helps: a weight goes wrong once, a row in every attempt."""
        return self.place == "weight" and self.policy == "rollback"

    def __str__(self) -> str:
        """Return the id of the test."""
        words = (self.place, self.value, self.moment, self.engine, self.precision, self.batches)
        return "-".join(map(str, (*words, self.policy)))


def all_faults() -> list[Fault]:
    """Return the full matrix."""
    every = itertools.product(PLACES, VALUES, MOMENTS, SETUPS, POLICIES)
    return [
        Fault(place, value, moment, *setup, policy) for place, value, moment, setup, policy in every
    ]


def covering_faults() -> list[Fault]:
    """Return a few faults that combine every place with every value, moment, engine and policy."""
    chosen: list[Fault] = []
    missing = set().union(*map(_meetings, all_faults()))
    while missing:
        best = max(all_faults(), key=lambda one: len(_meetings(one) & missing))
        chosen.append(best)
        missing -= _meetings(best)
    return chosen


def _meetings(fault: Fault) -> set[tuple[object, ...]]:
    others = (fault.value, fault.moment, fault.engine, fault.policy)
    setup = (fault.engine, fault.precision, fault.batches)
    return {(fault.place, one) for one in others} | {(setup, fault.policy)}


class FaultyData(BarDataModule):
    """A fold with one bad row."""

    fault: Fault

    def train_tensors(self) -> tuple[Tensor, Tensor]:
        """Inject the fault, or the signal of one, into a row of its step."""
        x, target = (one.clone() for one in super().train_tensors())
        row = int(self.order().begin()[1][MOMENTS[self.fault.moment]][3])
        if self.fault.place == "feature":
            x[row, 1] = self.fault.number
        elif self.fault.place == "target":
            target[row] = self.fault.number
        elif self.fault.place in ("loss", "gradient"):
            kind = VALUES.index(self.fault.value) + 3 * (self.fault.place == "gradient")
            target[row] = SIGNAL + kind
        return x, target


def faulty_loss(score: Tensor, target: Tensor) -> Tensor:
    """Squared error whose value or gradient goes wrong for a row with a signal.

    It is the same function for every fault, so that one compiled step serves them all.
    """
    hit = [(target == SIGNAL + kind).to(score.dtype) for kind in range(6)]
    endless = hit[0] * 1e38 * 1e38 * 0.0 + hit[1] * 1e38 * 1e38 + hit[2] * 1e30
    rise = score - score.detach()  # 0, with the gradient of the score
    root = [torch.sqrt(rise * one + (1.0 - one)) - (1.0 - one) for one in hit[3:5]]
    steep = root[0] * 0.0 + root[1] + rise * hit[5] * 1e30
    return (score - target).square().mean() + (endless + steep).sum()


class WeightFault(L.Callback):
    """Breaks a weight once: before a step, or after the last step."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.done = fault, False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wrap the step, so that no checkpoint is saved between the fault and its use."""
        step = pl_module.training_step

        def faulty_step(batch: object, batch_idx: int) -> object:
            due = self.fault.moment != "last" and trainer.global_step >= self.fault.step
            self._spoil(pl_module, due=due)
            return step(batch, batch_idx)

        pl_module.training_step = faulty_step  # type: ignore[method-assign]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        after = self.fault.moment == "last" and trainer.global_step > self.fault.last_step
        self._spoil(pl_module, due=after)

    @torch.no_grad()
    def _spoil(self, module: L.LightningModule, *, due: bool) -> None:
        if self.done or not due or self.fault.place != "weight":
            return
        assert isinstance(module, Forecaster)
        self.done = True
        module.net.head.weight[0, 2] = self.fault.number
        if module.calls is not None:
            assert module.calls.state is not None
            module.calls.state.parameters[-3] = self.fault.number


def settings(fault: Fault, *words: str) -> DictConfig:
    """Return the config of the fit with the fault."""
    given = [
        f"trainer.precision={fault.precision}",
        f"trainer.accumulate_grad_batches={fault.batches}",
        f"trainer.limit_train_batches={BATCHES}",
        "trainer.max_epochs=1",
        "trainer.enable_progress_bar=false",
        "split.refit=false",
        f"stability.on_nonfinite={fault.policy}",
        "stability.max_rollbacks=1",
        "stability.keep_every_n_steps=3",
        *(["engine.steps_per_call=6"] if fault.engine == "compiled" else []),
        *words,
    ]
    choices = tuple(one for one in given if "." not in one.partition("=")[0])
    keys = OmegaConf.from_dotlist([one for one in given if one not in choices])
    base = _composed("+experiment=smoke", f"engine={fault.engine}", *choices)
    merged = OmegaConf.merge(base, keys)
    assert isinstance(merged, DictConfig)
    return merged


@cache
def _composed(*choices: str) -> DictConfig:
    """Compose a config once for many fits."""
    return config(*choices)


def fit_with(
    fault: Fault | None,
    folder: Path,
    data: BarDataModule,
    *words: str,
    like: Fault | None = None,
    resume: bool = False,
) -> Fit:
    """Run a fit with a fault, or without a fault and with the settings of `like`."""
    hide_known_warnings()
    faulty, asked = copy.copy(data), fault or like
    assert asked is not None
    plan = FitPlan(folder, "", max_steps=None, resume=resume)
    faulty.calls = None
    if fault is None:
        return fit(fit_settings(settings(asked, *words)), faulty, plan)
    faulty.__class__, faulty.fault = FaultyData, fault
    with _injected(fault):
        return fit(fit_settings(settings(fault, *words)), faulty, plan)


@contextmanager
def _injected(fault: Fault) -> Iterator[None]:
    """Inject the fault into the loss and the Trainer."""
    real, spoil = fitting.make_trainer, WeightFault(fault)

    def make_trainer(
        asked: FitSettings, folder: Path, ours: list[L.Callback], **words: Any
    ) -> L.Trainer:
        return real(asked, folder, [spoil, *ours], **words)

    with (
        mock.patch.object(losses, "squared", faulty_loss),
        mock.patch.object(fitting, "make_trainer", make_trainer),
    ):
        yield
