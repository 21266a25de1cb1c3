"""Settings of a fit: frozen dataclasses, checked and built once from the config of a run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from robust_fin.errors import ConfigError

PLAIN, COMPILED = "plain", "compiled"
STOP, ROLLBACK = "stop", "rollback"
OWN, SHARED = "own", "shared"
AUTO = "auto"
MEMBER_LISTS = ("seeds", "lr", "weight_decay", "delta", "dropout")
_SEEDS = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """The arguments of Lightning's Trainer that a fit reads, and the Trainer's factory.

    Attributes:
        build: builds the Trainer from all its settings; keyword arguments take precedence.
    """

    build: Callable[..., L.Trainer]
    accelerator: str
    devices: int | str | list[int]
    num_nodes: int
    precision: int | str
    max_epochs: int | None
    max_steps: int
    limit_train_batches: int | float | None
    limit_val_batches: int | float | None
    overfit_batches: int | float
    val_check_interval: int | float | None
    accumulate_grad_batches: int
    gradient_clip_val: int | float | None
    gradient_clip_algorithm: str | None
    enable_progress_bar: bool
    detect_anomaly: bool

    @classmethod
    def checked(
        cls, values: Mapping[str, Any], *, build: Callable[..., L.Trainer]
    ) -> "TrainerSettings":
        """Check the two limits of a fit, and leave out the arguments that no fit reads."""
        for name in ("max_epochs", "max_steps"):
            value = values[name]
            if value is not None and (not isinstance(value, int) or value < -1 or value == 0):
                raise ConfigError(
                    f"trainer.{name}={value} must be a whole number above 0, or -1 for no limit"
                )
        names = [field.name for field in fields(cls) if field.name != "build"]
        return cls(build=build, **{name: values[name] for name in names})

    @property
    def processes(self) -> int:
        """The world size that the settings ask for."""
        count = self.devices if isinstance(self.devices, int) else len(self.devices)
        return count * self.num_nodes

    @property
    def clip_norm(self) -> int | float | None:
        """Gradient norm above which gradients are scaled down; None if they are not."""
        return None if self.gradient_clip_algorithm == "value" else self.gradient_clip_val


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSettings:
    """conf/checkpoint.

    Attributes:
        monitor: metric that chooses best.ckpt.
        mode: max or min.
        every_n_steps: optimizer steps between two writes of last.ckpt.
    """

    monitor: str
    mode: str
    every_n_steps: int

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> "CheckpointSettings":
        """Check the interval."""
        _check_count("checkpoint.every_n_steps", values["every_n_steps"], minimum=1)
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilitySettings:
    """conf/stability: the response to a non-finite step.

    Attributes:
        on_nonfinite: stop, or rollback to an earlier state at half the learning rate.
        max_rollbacks: rollbacks per fit.
        keep_every_n_steps: optimizer steps between the states that a rollback can return to.
        diagnose_every_n_steps: optimizer steps between two diagnoses; None for no diagnoses.
    """

    on_nonfinite: str
    max_rollbacks: int
    keep_every_n_steps: int
    diagnose_every_n_steps: int | None

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> "StabilitySettings":
        """Check every value."""
        policy = values["on_nonfinite"]
        if policy not in (STOP, ROLLBACK):
            raise ConfigError(f"stability.on_nonfinite={policy} must be {STOP} or {ROLLBACK}")
        _check_count("stability.max_rollbacks", values["max_rollbacks"], minimum=0)
        _check_count("stability.keep_every_n_steps", values["keep_every_n_steps"], minimum=1)
        every = values["diagnose_every_n_steps"]
        if every is not None:
            _check_above_zero("stability.diagnose_every_n_steps", every, otherwise=", or null")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """conf/engine.

    Attributes:
        name: plain (Lightning's loop) or compiled.
        steps_per_call: optimizer steps per call of the compiled loop.
        matmul: how the compiled loop multiplies matrices: rows, extern or auto.
    """

    name: str
    steps_per_call: int = 1
    matmul: str = AUTO

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> "EngineSettings":
        """Check the name and the number of steps."""
        if values["name"] not in (PLAIN, COMPILED):
            raise ConfigError(f"engine.name={values['name']} must be {PLAIN} or {COMPILED}")
        _check_steps_per_call("engine", values.get("steps_per_call", 1))
        return cls(**values)

    @property
    def compiled(self) -> bool:
        """True for the compiled engine."""
        return self.name == COMPILED


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationSettings:
    """conf/population: how many nets are trained, and what differs between them.

    A list has one value per member; None means the run's own value for all members.

    Attributes:
        members: number of members per fold; None trains a single net.
        order: own (rows in the order of the member's seed) or shared (in that of the run's seed).
        seeds: seeds of initialisation and dropout; None for seed, seed + 1, ...
        lr: learning rates.
        weight_decay: AdamW's weight decay.
        delta: delta of the Huber loss, in rank units.
        dropout: dropout probabilities in [0, 1).
        steps_per_call: optimizer steps of a member before the next member's turn.
        workers: threads that share the members.
        block: members per vmap block, "auto" to measure, or None for the engine's default.
    """

    members: int | None
    order: str
    seeds: Sequence[int] | None
    lr: Sequence[int | float] | None
    weight_decay: Sequence[int | float] | None
    delta: Sequence[int | float] | None
    dropout: Sequence[int | float] | None
    steps_per_call: int
    workers: int
    block: int | str | None

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> "PopulationSettings":
        """Check every value, and the length of the lists if `members` is given."""
        members, block = values["members"], values["block"]
        if members is not None:
            _check_above_zero("population.members", members, otherwise=", or null")
        if values["order"] not in (OWN, SHARED):
            raise ConfigError(f"population.order={values['order']} must be {OWN} or {SHARED}")
        for name in MEMBER_LISTS:
            _check_list(name, values[name])
        _check_steps_per_call("population", values["steps_per_call"])
        _check_above_zero("population.workers", values["workers"])
        if block not in (None, AUTO):
            _check_above_zero("population.block", block, otherwise=", auto or null")
        settings = cls(**values)
        if members is not None:
            settings.check_lengths()
        return settings

    @property
    def count(self) -> int:
        """Members per fold."""
        return self.members or 1

    def check_lengths(self) -> None:
        """Raise ConfigError unless each list has one value per member."""
        for name in MEMBER_LISTS:
            values = getattr(self, name)
            if values is not None and len(values) != self.count:
                raise ConfigError(
                    f"population.{name} has {len(values)} values, and population.members="
                    f"{self.count}; give one per member"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Everything that a fit needs apart from its data.

    Attributes:
        seed: seed of initialisation, dropout and the order of rows.
        batch_size: rows per training batch and process.
        net: builds the net; called with `features=n`.
        link: raw score -> forecast.
        loss: (forecast, target) -> training objective, with its settings bound.
        optimizer: the optimizer's class with its settings bound; called with the parameters.
        schedule: (step, total=n) -> factor of the learning rate, with its settings bound.
        callbacks: builds the callbacks of conf/callbacks.
        logger: builds the logger; called with `save_dir`, `name` and `version`.
        config: the resolved config of the run as YAML, for the record of a failed step.
    """

    seed: int
    batch_size: int
    net: Callable[..., nn.Module]
    link: Callable[[Tensor], Tensor]
    loss: partial[Tensor]
    optimizer: partial[Any]
    schedule: partial[float]
    engine: EngineSettings
    population: PopulationSettings
    trainer: TrainerSettings
    checkpoint: CheckpointSettings
    stability: StabilitySettings
    callbacks: Callable[[], list[L.Callback]]
    logger: Callable[..., Logger]
    config: str


def _check_count(key: str, value: object, *, minimum: int) -> None:
    if not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{key}={value} must be a whole number, at least {minimum}")


def _check_above_zero(key: str, value: object, *, otherwise: str = "") -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}={value} must be a whole number above 0{otherwise}")


def _check_steps_per_call(group: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{group}.steps_per_call={value} must be above 0, a whole number")


def _check_list(name: str, values: Any) -> None:
    if values is None:
        return
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ConfigError(f"population.{name}={values} must be a list with one value per member")
    for value in values:
        _check_member_value(name, value)


def _check_member_value(name: str, value: Any) -> None:
    if name == "seeds":
        valid = isinstance(value, int) and 0 <= value < _SEEDS
        rule = f"a whole number in [0, {_SEEDS})"
    else:
        lowest_allowed, maximum, rule = {
            "lr": (True, math.inf, "a finite number, at least 0"),
            "weight_decay": (True, math.inf, "a finite number, at least 0"),
            "delta": (False, math.inf, "a finite number above 0"),
            "dropout": (True, 1, "a number in [0, 1)"),
        }[name]
        valid = isinstance(value, int | float) and 0 <= value < maximum
        valid = valid and (lowest_allowed or value > 0)
    if not valid:
        raise ConfigError(f"population.{name}: {value} must be {rule}")
