"""Many optimizer steps of any net in one call: forward, backward, clipping and AdamW, compiled.

A step is traced once (`loop_trace`), Inductor writes its C++ kernels, and these are joined with a
loop into one shared library (`loop_source`, `loop_library`). Python is left once a call.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from robust_fin.errors import ConfigError
from robust_fin.training.engine.loop_library import LoopLibrary
from robust_fin.training.engine.step_state import (
    HashedDropout,
    Layout,
    LoopState,
    StepState,
    adamw,
    step_keys,
    step_scalars,
)
from robust_fin.training.engine.trace import LoopInputs, check_step, trace_step
from robust_fin.training.losses import check_same_shape

__all__ = ["StepLoop", "StepResult", "StepSettings", "StepState", "TrainingStep"]

MATMULS = ("auto", "rows", "extern")
EXTERN_FROM = 3e5  # batch times parameters from which the library's products are faster


class StepResult(NamedTuple):
    """What the steps of one call did.

    Attributes:
        loss: objective of each step, before its update.
        gradient_norm: of each step, before clipping.
        first_bad: index within the call of the first step whose loss or norm is not finite; from
            it on the state is frozen. 0 for a state that came in frozen; None where all is well.
    """

    loss: Float[Tensor, " steps"]
    gradient_norm: Float[Tensor, " steps"]
    first_bad: int | None

    def copied(self) -> "StepResult":
        """The same in memory of its own."""
        return StepResult(self.loss.clone(), self.gradient_norm.clone(), self.first_bad)


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What is compiled into a step.

    Attributes:
        clip: largest norm of the gradient; None or 0 leaves it alone.
        betas: AdamW's.
        eps: AdamW's.
        matmul: `rows` fuses products with what surrounds them, `extern` calls the library; `auto`
            takes rows while batch times parameters is below 300,000.
    """

    clip: float | None
    betas: tuple[float, float]
    eps: float
    matmul: str = "auto"

    def __post_init__(self) -> None:
        """Refuse a word that means nothing."""
        if self.matmul not in MATMULS:
            raise ConfigError(f"matmul={self.matmul!r} is none of {', '.join(MATMULS)}")

    @property
    def adamw(self) -> dict[str, Any]:
        """What `adamw` takes of them."""
        return {"betas": self.betas, "eps": self.eps}

    def products(self, *, batch_size: int, parameters: int) -> str:
        """`rows` or `extern`."""
        if self.matmul != "auto":
            return self.matmul
        return "rows" if batch_size * parameters < EXTERN_FROM else "extern"


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimizer step as a function of tensors; what `trace_step` traces.

    Attributes:
        net: (batch, features) -> (batch,), raw scores.
        layout: of its flat parameters.
        link: raw score -> forecast.
        loss: (forecast, target) -> the objective, or (forecast, target, setting) -> it.
        settings: clipping and AdamW's numbers.
        loss_takes_setting: whether the loss has a third argument.
        own_dropout: whether the rate of dropout is an input.
    """

    net: nn.Module
    layout: Layout
    link: Callable[[Tensor], Tensor]
    loss: Callable[..., Tensor]
    settings: StepSettings
    loss_takes_setting: bool
    own_dropout: bool

    def __call__(self, inputs: LoopInputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The state after the step; loss and gradient norm."""
        parameters, exp_avg, exp_avg_sq, alive = inputs.carry
        parts, loss = grad_and_value(lambda leaves: self._objective(leaves, inputs))(
            self.layout.unflatten(parameters)
        )
        gradient = torch.cat([one.reshape(-1) for one in parts])
        norm = gradient.square().sum().sqrt()
        if self.settings.clip:  # as torch.nn.utils.clip_grad_norm_
            gradient = gradient * (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
        alive = alive * (torch.isfinite(loss) & torch.isfinite(norm))
        old = (parameters, exp_avg, exp_avg_sq)
        new = adamw(*old, gradient, inputs.moving[0], **self.settings.adamw)
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
        return self._judged(score, target, setting)

    def _judged(self, score: Tensor, target: Tensor, setting: list[Tensor]) -> Tensor:
        """The loss of raw scores; one that would broadcast is refused when the step is traced."""
        forecast = self.link(score)
        check_same_shape(forecast, target)
        return self.loss(forecast, target, *setting)

    def check(self, inputs: LoopInputs) -> None:
        """Refuse a net that a compiled step would train differently."""
        x, target = inputs.gathered
        setting = [inputs.fixed[0]] if self.loss_takes_setting else []
        with HashedDropout(inputs.moving[1]):
            check_step(self.net, x, objective=lambda score: self._judged(score, target, setting))


class StepLoop:
    """A compiled loop over optimizer steps, for one net or for many of its architecture.

    Data, row numbers, learning rates, weight decay, seed and the optional settings are given to
    `run`, so that one loop serves every member of a population and every fold.

    Args:
        net: (batch, features) -> (batch,), raw scores; traced in the mode it is in, and unchanged.
        link: raw score -> forecast.
        loss: (forecast, target) -> the objective, or (forecast, target, setting) -> it.
        batch_size: rows a step.
        features: inputs a row.
        settings: what is compiled in.
        loss_takes_setting: the loss has a third argument, a scalar that `run` is given.
        own_dropout: `run` is given the dropout rate, in place of the layers' own; slower.

    Attributes:
        compile_seconds: tracing, and building where the library was not on disk.
        cached: whether it was.
        step: what is compiled.
        example: its inputs at one step.
        products: `rows` or `extern`.

    Raises:
        UnsupportedStepError: a net or loss that cannot be compiled.
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
        """Compile, or load from the cache."""
        start = time.perf_counter()
        state = StepState(net)
        self._settings, self._layout = settings, Layout(net)
        self._options = (loss_takes_setting, own_dropout)
        self.step = TrainingStep(net, self._layout, link, loss, settings, *self._options)
        self.example = self._example(state, batch_size=batch_size, features=features)
        self.step.check(self.example)
        self.products = settings.products(batch_size=batch_size, parameters=self._layout.size)
        self._library = LoopLibrary(trace_step(self.step, self.example, matmul=self.products))
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
        """Take a step for each row of `rows`; the state is changed in place.

        Args:
            state: of this net or of another one of its architecture.
            x: the training rows, of the parameters' dtype.
            target: one a row, of the same dtype.
            rows: int64 row numbers of each step's batch.
            lr: learning rate of each step, float64.
            weight_decay: AdamW's.
            seed: of the dropout masks, which also depend on the count of steps.
            loss_setting: the loss's third argument, with `loss_takes_setting`.
            dropout: share zeroed, in [0, 1), with `own_dropout`.

        Raises:
            ValueError: a tensor of another shape or dtype than the loop was compiled for, or a
                setting that it was not compiled for.
            IndexError: a row number outside the data.
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
        return scalars.to(self._layout.dtype), keys

    def _optional(self, *given: Tensor | None) -> list[Tensor]:
        names = ("loss_setting", "dropout")
        for name, one, wanted in zip(names, given, self._options, strict=True):
            if (one is not None) != wanted:
                state = "needs" if wanted else "was compiled without"
                raise ValueError(f"this StepLoop {state} {name}, which is {one}")
        return [one.to(self._layout.dtype) for one in given if one is not None]

    def _example(self, state: StepState, *, batch_size: int, features: int) -> LoopInputs:
        """Inputs of one step, to trace with."""
        dtype = self._layout.dtype
        moving = self._moving(state, torch.ones(1), weight_decay=0.0, seed=0)
        draw = torch.Generator().manual_seed(0)  # the global one is the training's
        x = torch.rand(batch_size, features, generator=draw, dtype=dtype)
        gathered = (x, torch.rand(batch_size, generator=draw, dtype=dtype))
        optional = [torch.full((), 0.5, dtype=dtype) for _ in range(sum(self._options))]
        return LoopInputs(
            state.vectors, (moving[0][0], moving[1][0]), gathered, (*optional, *state.constants)
        )


def first_nonfinite_step(loss: Float[Tensor, " steps"], norm: Float[Tensor, " steps"]) -> int:
    """First step that is not finite; 0 where none is, as the state came in frozen."""
    return int((~(loss.isfinite() & norm.isfinite())).int().argmax())


def steps_to_log(first: int, count: int, *, every: int) -> range:
    """Which steps draw a point of the curves, as numbers from `first` on.

    Args:
        first: optimizer steps done before.
        count: steps that are done now.
        every: steps between two points; 0 draws none.

    >>> list(points_due(40, 120, every=50))
    [9, 59, 109]
    """
    return range((-first - 1) % every, count, every) if every else range(0)
