"""Compiled optimizer steps of any net: forward, backward, clipping and AdamW, many in one call."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from robust_fin.errors import ConfigError
from robust_fin.training.engine.inductor import compile_step
from robust_fin.training.engine.step_state import (
    HashedDropout,
    LoopState,
    ParameterLayout,
    StepState,
    adamw,
    step_keys,
    step_scalars,
)
from robust_fin.training.engine.trace import LoopInputs, check_net
from robust_fin.training.losses import check_same_shape

MATMULS = ("auto", "rows", "extern")
EXTERN_FROM = 3e5  # batch times parameters from which the library's products are faster


class StepResult(NamedTuple):
    """Loss and gradient norm of the steps of one call.

    Attributes:
        loss: objective of each step, before its update.
        gradient_norm: of each step, before clipping.
        first_bad: index of the first step whose loss or norm is not finite, from which on the
            state is frozen; 0 if it was frozen before the call; None if all steps are finite.
    """

    loss: Float[Tensor, " steps"]
    gradient_norm: Float[Tensor, " steps"]
    first_bad: int | None

    def copied(self) -> "StepResult":
        """Return a copy that shares no memory."""
        return StepResult(self.loss.clone(), self.gradient_norm.clone(), self.first_bad)


@dataclass(frozen=True, slots=True)
class StepSettings:
    """Settings that are compiled into a step.

    Attributes:
        clip: largest norm of the gradient; None or 0 does not clip.
        betas: AdamW's decay rates.
        eps: AdamW's.
        matmul: `rows` fuses matrix products with the operations around them, `extern` calls the
            library; `auto` uses rows if batch size times parameters is below 300,000.
    """

    clip: float | None
    betas: tuple[float, float]
    eps: float
    matmul: str = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError if `matmul` is unknown."""
        if self.matmul not in MATMULS:
            raise ConfigError(f"matmul={self.matmul!r} must be one of {', '.join(MATMULS)}")

    def products(self, *, batch_size: int, parameters: int) -> str:
        """Resolve `matmul` to `rows` or `extern`."""
        if self.matmul != "auto":
            return self.matmul
        return "rows" if batch_size * parameters < EXTERN_FROM else "extern"


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimizer step as a pure function of tensors.

    Attributes:
        net: (batch, features) -> (batch,), raw scores.
        layout: order of its parameters in the flat vectors.
        link: raw score -> forecast.
        loss: (forecast, target) -> objective, or (forecast, target, setting) -> objective.
        settings: clipping and AdamW's numbers.
        loss_takes_setting: the loss has a third argument.
        own_dropout: the dropout rate is an input.
    """

    net: nn.Module
    layout: ParameterLayout
    link: Callable[[Tensor], Tensor]
    loss: Callable[..., Tensor]
    settings: StepSettings
    loss_takes_setting: bool
    own_dropout: bool

    def __call__(self, inputs: LoopInputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the state after the step, and its loss and gradient norm."""
        parameters, exp_avg, exp_avg_sq, alive = inputs.carry
        parts, loss = grad_and_value(lambda leaves: self._objective(leaves, inputs))(
            self.layout.unflatten(parameters)
        )
        gradient = torch.cat([part.reshape(-1) for part in parts])
        norm = gradient.square().sum().sqrt()
        if self.settings.clip:  # as torch.nn.utils.clip_grad_norm_
            gradient = gradient * (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
        alive = alive * (torch.isfinite(loss) & torch.isfinite(norm))
        old = (parameters, exp_avg, exp_avg_sq)
        new = adamw(
            *old, gradient, inputs.moving[0], betas=self.settings.betas, eps=self.settings.eps
        )
        state = (torch.where(alive > 0, a, b) for a, b in zip(new, old, strict=True))
        return (*state, alive), (loss, norm)

    def _objective(self, leaves: list[Tensor], inputs: LoopInputs) -> Tensor:
        x, target = inputs.gathered
        fixed = list(inputs.fixed)
        setting = [fixed.pop(0)] if self.loss_takes_setting else []
        rate = fixed.pop(0) if self.own_dropout else None
        named = zip([*self.layout.names, *self.layout.constants], [*leaves, *fixed], strict=True)
        with HashedDropout(inputs.moving[1], rate=rate):
            score = functional_call(self.net, dict(named), (x,))
        return self._loss_of(score, target, setting)

    def _loss_of(self, score: Tensor, target: Tensor, setting: list[Tensor]) -> Tensor:
        forecast = self.link(score)
        check_same_shape(forecast, target)  # a loss that broadcasts fails when it is traced
        return self.loss(forecast, target, *setting)

    def check(self, inputs: LoopInputs) -> None:
        """Raise UnsupportedStepError if a compiled step would train the net differently."""
        x, target = inputs.gathered
        setting = [inputs.fixed[0]] if self.loss_takes_setting else []
        with HashedDropout(inputs.moving[1]):
            check_net(self.net, x, objective=lambda score: self._loss_of(score, target, setting))


class StepLoop:
    """A compiled loop over optimizer steps, for one net or for many of its architecture.

    Data, row numbers, learning rates, weight decay, seed and the optional settings are arguments
    of `run`, so that one loop serves every member of a population and every fold.

    Args:
        net: (batch, features) -> (batch,), raw scores; traced in its current mode, not changed.
        link: raw score -> forecast.
        loss: (forecast, target) -> objective, or (forecast, target, setting) -> objective.
        batch_size: rows per step.
        features: inputs per row.
        settings: compiled into the step.
        loss_takes_setting: the loss has a third argument, a scalar passed to `run`.
        own_dropout: `run` takes the dropout rate instead of the layers' own; slower.

    Attributes:
        compile_seconds: time to trace, and to build if the library was not cached.
        cached: whether the library was cached.
        step: the function that was compiled.
        example: its inputs at one step.
        products: `rows` or `extern`.

    Raises:
        UnsupportedStepError: the net or loss cannot be compiled.
        NoCompilerError: there is no C++ compiler.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        link: Callable[[Tensor], Tensor],
        loss: Callable[..., Tensor],
        batch_size: int,
        features: int,
        settings: StepSettings,
        loss_takes_setting: bool = False,
        own_dropout: bool = False,
    ) -> None:
        """Compile the step, or load it from the cache."""
        start = time.perf_counter()
        state, layout = StepState(net), ParameterLayout(net)
        self._settings, self._dtype = settings, layout.dtype
        self._options = (loss_takes_setting, own_dropout)
        self.step = TrainingStep(net, layout, link, loss, settings, *self._options)
        self.example = self._example(state, batch_size=batch_size, features=features)
        self.step.check(self.example)
        self.products = settings.products(batch_size=batch_size, parameters=layout.size)
        self._library = compile_step(self.step, self.example, matmul=self.products)
        self.cached = self._library.cached
        self.compile_seconds = time.perf_counter() - start

    def run(
        self,
        state: LoopState,
        *,
        x: Float[Tensor, "rows features"],
        target: Float[Tensor, " rows"],
        rows: Int[Tensor, "steps batch"],
        lr: Float[Tensor, " steps"],
        weight_decay: float,
        seed: int,
        loss_setting: Float[Tensor, ""] | None = None,
        dropout: Float[Tensor, ""] | None = None,
    ) -> StepResult:
        """Do one optimizer step per row of `rows`.

        Args:
            state: of a net of this architecture; updated in place.
            x: training rows, in the parameters' dtype.
            target: one per row, same dtype.
            rows: int64 row numbers of each step's batch.
            lr: learning rate of each step, float64.
            weight_decay: AdamW's.
            seed: of the dropout masks, which also depend on the number of steps done.
            loss_setting: the loss's third argument, with `loss_takes_setting`.
            dropout: share zeroed, in [0, 1), with `own_dropout`.

        Raises:
            ValueError: a tensor has another shape or dtype than the loop was compiled for, or a
                setting was not compiled in.
            IndexError: a row number is outside the data.
        """
        moving = self._moving(state, lr, weight_decay=weight_decay, seed=seed)
        fixed = (*self._optional(loss_setting, dropout), *state.constants)
        inputs = LoopInputs(state.vectors, moving, (x, target), fixed)
        loss, norm = self._library.run(inputs, rows=rows)
        bad = None if bool(state.alive) else first_nonfinite_step(loss, norm)
        state.count += len(rows) if bad is None else bad
        return StepResult(loss, norm, bad)

    def _moving(
        self, state: LoopState, lr: Tensor, *, weight_decay: float, seed: int
    ) -> tuple[Tensor, Tensor]:
        scalars = step_scalars(
            lr, first_step=state.count, weight_decay=weight_decay, betas=self._settings.betas
        )
        keys = step_keys(seed, first_step=state.count, steps=len(lr))
        return scalars.to(self._dtype), keys

    def _optional(self, *given: Tensor | None) -> list[Tensor]:
        names = ("loss_setting", "dropout")
        for name, value, wanted in zip(names, given, self._options, strict=True):
            if (value is not None) != wanted:
                state = "needs" if wanted else "was compiled without"
                raise ValueError(f"this StepLoop {state} {name}, got {value}")
        return [value.to(self._dtype) for value in given if value is not None]

    def _example(self, state: StepState, *, batch_size: int, features: int) -> LoopInputs:
        """Return inputs of one step to trace with."""
        moving = self._moving(state, torch.ones(1), weight_decay=0.0, seed=0)
        generator = torch.Generator().manual_seed(0)  # the global generator belongs to training
        x = torch.rand(batch_size, features, generator=generator, dtype=self._dtype)
        target = torch.rand(batch_size, generator=generator, dtype=self._dtype)
        optional = [torch.full((), 0.5, dtype=self._dtype) for _ in range(sum(self._options))]
        fixed = (*optional, *state.constants)
        return LoopInputs(state.vectors, (moving[0][0], moving[1][0]), (x, target), fixed)


def first_nonfinite_step(loss: Float[Tensor, " steps"], norm: Float[Tensor, " steps"]) -> int:
    """Return the index of the first step that is not finite; 0 if the state was frozen before."""
    return int((~(loss.isfinite() & norm.isfinite())).int().argmax())


def steps_to_log(first: int, count: int, *, every: int) -> range:
    """Return the steps of a call at which the curves get a point, counted from `first`.

    Args:
        first: optimizer steps done before the call.
        count: steps of the call.
        every: steps between two points; 0 draws none.

    >>> list(steps_to_log(40, 120, every=50))
    [9, 59, 109]
    """
    return range((-first - 1) % every, count, every) if every else range(0)
