"""Optimizer steps of all members: by the compiled loop, or stacked by vmap."""

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap

from robust_fin.data.batches import CallPlan, EpochOrder, MemberOrders, StepWindow
from robust_fin.data.datamodule import MemberData
from robust_fin.training.engine.inductor import compile_step
from robust_fin.training.engine.step_state import step_keys, step_scalars
from robust_fin.training.engine.steps import (
    StepLoop,
    StepResult,
    TrainingStep,
    first_nonfinite_step,
)
from robust_fin.training.engine.trace import EngineDriftError, LoopInputs, StepBody
from robust_fin.training.population.members import Member, MemberState
from robust_fin.training.settings import AUTO

log = logging.getLogger(__name__)

_STACKED_TRIALS, _LOOPED_TRIALS = (16, 64, 256), (1, 8, 32)


class MemberWork(NamedTuple):
    """The steps of one member in one call; see `StepLoop.run`."""

    x: Float[Tensor, "rows features"]
    target: Float[Tensor, " rows"]
    rows: Int[Tensor, "steps batch"]
    lr: Float[Tensor, " steps"]
    weight_decay: float
    seed: int
    loss_setting: Float[Tensor, ""] | None
    dropout: Float[Tensor, ""] | None


@runtime_checkable
class MemberEngine(Protocol):
    """Runs the steps of members that share a data set and a number of steps.

    Attributes:
        block: members per call of `run`.
    """

    block: int

    def settle(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> None:
        """Choose `block` by a short measurement if it is AUTO; call before threads share it."""
        ...

    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Run the steps of at most `block` members and update their states in place."""
        ...


class LoopedMembers:
    """The compiled engine: members one by one, or a block of them in one loop.

    Args:
        loop: of one member; it holds no state.
        block: members in one loop; a smaller group runs one by one. AUTO measures.
    """

    def __init__(self, loop: StepLoop, *, block: int | str = 1) -> None:
        """Compile the block if its size is known."""
        self.loop = loop
        self._measure = block == AUTO
        self._loops: dict[int, BlockLoop] = {}
        self.block = max(_LOOPED_TRIALS) if isinstance(block, str) else block
        if not self._measure:
            self._compile(self.block)

    def settle(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> None:
        """Choose `block` by a short measurement if it is AUTO."""
        if not self._measure:
            return
        sizes = [size for size in _LOOPED_TRIALS if size <= len(states)]
        for size in sizes:
            self._compile(size)
        self.block, self._measure = fastest_block(self.run, sizes, states, work, steps=64), False

    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Run the members' steps and update their states in place."""
        if len(states) in self._loops:
            return self._loops[len(states)].run(states, work)
        pairs = zip(states, work, strict=True)
        return [self.loop.run(state, **job._asdict()) for state, job in pairs]

    def _compile(self, size: int) -> None:
        if size == 1:
            return
        try:
            self._loops[size] = BlockLoop(self.loop, members=size)
        except EngineDriftError as error:
            log.warning("%s; members run one by one instead of %d at a time", error, size)


class BlockLoop:
    """A compiled loop over the steps of several members at once.

    Args:
        loop: of one member.
        members: number of members in every call.
    """

    def __init__(self, loop: StepLoop, *, members: int) -> None:
        """Compile the loop, or load it from the cache."""
        self._betas = loop.step.settings.betas
        self._members, self._step = members, vmap(loop.step)
        example = [tuple(torch.stack([x] * members) for x in field) for field in loop.example]
        gathered = tuple(x.flatten(0, 1) for x in example[2])
        inputs = LoopInputs(example[0], example[1], gathered, example[3])
        self._library = compile_step(self._body, inputs, matmul=loop.products)

    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Run the members' steps and update their states in place."""
        inputs, rows = stack_inputs(states, work, betas=self._betas)
        loss, norm = self._library.run(inputs, rows=rows.flatten(1))
        return store_results(states, inputs.carry, loss.T, norm.T)

    def _body(self, inputs: LoopInputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        gathered = tuple(x.unflatten(0, (self._members, -1)) for x in inputs.gathered)
        carry, outputs = self._step(inputs._replace(gathered=gathered))
        return carry, outputs


class StackedMembers:
    """The plain engine: a block of members at once by torch.func.vmap, without a compiler.

    Args:
        step: of one member.
        block: members at once; AUTO measures.
    """

    def __init__(self, step: TrainingStep, *, block: int | str) -> None:
        """Keep the step."""
        self._step, self._local = step, threading.local()
        self._measure = block == AUTO
        self.block = max(_STACKED_TRIALS) if isinstance(block, str) else block

    def settle(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> None:
        """Choose `block` by a short measurement if it is AUTO."""
        if self._measure:
            sizes = [size for size in _STACKED_TRIALS if size <= len(states)] or [len(states)]
            self.block, self._measure = fastest_block(self.run, sizes, states, work, steps=3), False

    @torch.no_grad()
    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Run the members' steps and update their states in place."""
        inputs, rows = stack_inputs(states, work, betas=self._step.settings.betas)
        (x, target), carry, outputs = inputs.gathered, inputs.carry, []
        step = self._step_of_thread()
        for number, batch in enumerate(rows):
            moving = tuple(tensor[number] for tensor in inputs.moving)
            carry, output = step(LoopInputs(carry, moving, (x[batch], target[batch]), inputs.fixed))
            outputs.append(output)
        loss, norm = (torch.stack(values, dim=1) for values in zip(*outputs, strict=True))
        return store_results(states, carry, loss, norm)

    def _step_of_thread(self) -> StepBody:
        """Return the step on this thread's copy of the net: a functional call swaps its weights."""
        if not hasattr(self._local, "step"):
            self._local.step = vmap(replace(self._step, net=copy.deepcopy(self._step.net)))
        step: StepBody = self._local.step
        return step


def fastest_block(
    run: Callable[[Sequence[MemberState], Sequence[MemberWork]], list[StepResult]],
    sizes: Sequence[int],
    states: Sequence[MemberState],
    work: Sequence[MemberWork],
    *,
    steps: int,
) -> int:
    """Return the block size with the most member-steps per second, on copies of the first members.

    Args:
        run: runs the steps of the members it is given.
        sizes: candidates, none above the number of members.
        states: not changed.
        work: of the same members.
        steps: per trial.
    """
    seconds: dict[int, float] = {}
    few = [job._replace(rows=job.rows[:steps], lr=job.lr[:steps]) for job in work]
    for size in sizes:
        trial = [state.copied() for state in states[:size]]
        run(trial, few[:size])  # warm up
        began = time.perf_counter()
        run(trial, few[:size])
        seconds[size] = (time.perf_counter() - began) / size
    return min(seconds, key=lambda size: seconds[size])


def stack_inputs(
    states: Sequence[MemberState], work: Sequence[MemberWork], *, betas: tuple[float, float]
) -> tuple[LoopInputs, Int[Tensor, "steps members batch"]]:
    """Return the inputs of a vmapped step and the row numbers.

    Args:
        states: copied into the carry.
        work: of each member, with one data set and number of steps.
        betas: AdamW's.

    Returns:
        Inputs with an axis of members, moving ones with a leading axis of steps; the row numbers.
    """
    dtype = states[0].parameters.dtype
    scalars, keys, fixed = [], [], []
    for state, job in zip(states, work, strict=True):
        numbers = step_scalars(
            job.lr, first_step=state.count, weight_decay=job.weight_decay, betas=betas
        )
        scalars.append(numbers.to(dtype))
        keys.append(step_keys(job.seed, first_step=state.count, steps=len(job.lr)))
        given = [job.loss_setting, job.dropout]
        fixed.append((*(value.to(dtype) for value in given if value is not None), *state.constants))
    return LoopInputs(
        _stack_columns([state.vectors for state in states]),
        (torch.stack(scalars, dim=1), torch.stack(keys, dim=1)),
        (work[0].x, work[0].target),
        _stack_columns(fixed),
    ), torch.stack([job.rows for job in work], dim=1)


def store_results(
    states: Sequence[MemberState],
    carry: tuple[Tensor, ...],
    loss: Float[Tensor, "members steps"],
    norm: Float[Tensor, "members steps"],
) -> list[StepResult]:
    """Write a stacked carry back into the states, and return the result of each member."""
    results = []
    for number, state in enumerate(states):
        torch._foreach_copy_(list(state.vectors), [x[number] for x in carry])
        bad = None if bool(state.alive) else first_nonfinite_step(loss[number], norm[number])
        state.count += loss.shape[1] if bad is None else bad
        results.append(StepResult(loss[number], norm[number], bad))
    return results


def _stack_columns(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(list(column)) for column in zip(*parts, strict=True))


class MemberPace:
    """The steps, rows and learning rates of each member in a window of the population.

    Each member passes through its own data set at its own pace, as in a single run.

    Args:
        members: their settings.
        sets: the data sets.
        batch_size: rows per step.
        epoch_steps: optimizer steps per epoch of each data set.
        schedules: per data set: optimizer step, counted from 0 -> factor of the learning rate.
        plan: windows on the scale of the data set with the most steps.
        limits: optimizer steps after which each member ends; None trains all to the end.
    """

    def __init__(
        self,
        members: Sequence[Member],
        sets: Sequence[MemberData],
        *,
        batch_size: int,
        epoch_steps: Sequence[int],
        schedules: Sequence[Callable[[int], float]],
        plan: CallPlan,
        limits: Sequence[int] | None = None,
    ) -> None:
        """Share equal orders of rows; nothing is drawn yet."""
        self.members, self.sets, self.plan = members, sets, plan
        self._epoch_steps, self._schedules, self._limits = epoch_steps, schedules, limits
        shared: dict[tuple[int, int], EpochOrder] = {}
        for member in members:
            order = EpochOrder(
                sets[member.data].size, batch_size=batch_size, seed=member.order_seed
            )
            shared.setdefault((member.data, member.order_seed), order)
        self._orders = MemberOrders([shared[m.data, m.order_seed] for m in members])
        self._factors: dict[tuple[int, int, int], Float[Tensor, " steps"]] = {}

    def enter(self, epoch: int) -> None:
        """Drop the orders of other epochs; call before threads ask for rows."""
        self._orders.enter(epoch)
        self._factors = {}

    def span(self, member: int, window: StepWindow) -> tuple[int, int]:
        """Return the first step of a member's epoch in the window, and the step after its last."""
        steps, longest = self._epoch_steps[self.members[member].data], self.plan.steps
        start, stop = (steps * step // longest for step in (window.start, window.stop))
        if self._limits is not None:
            left = max(0, self._limits[member] - window.epoch * steps)
            start, stop = min(start, left), min(stop, left)
        return start, stop

    def blocks(
        self, members: Sequence[int], window: StepWindow, *, size: int
    ) -> Iterator[Sequence[int]]:
        """Yield blocks of members that have steps in the window and share data and step count."""

        def key(member: int) -> tuple[int, int]:
            start, stop = self.span(member, window)
            return self.members[member].data, stop - start

        busy = [member for member in members if key(member)[1]]
        for _, group in groupby(sorted(busy, key=key), key=key):
            alike = list(group)
            yield from (alike[first : first + size] for first in range(0, len(alike), size))

    def work(self, member: int, window: StepWindow) -> MemberWork:
        """Return the work of one member in the window."""
        settings = self.members[member]
        data, (start, stop) = self.sets[settings.data], self.span(member, window)
        rows = self._orders.rows(member, start, stop)
        first = window.epoch * self._epoch_steps[settings.data] + start
        return MemberWork(
            data.x,
            data.target,
            rows if data.rows is None else data.rows[rows],
            self._lr_factors(settings.data, first, stop - start) * settings.lr,
            settings.weight_decay,
            settings.seed,
            _scalar(settings.delta),
            _scalar(settings.dropout),
        )

    def _lr_factors(self, data: int, first: int, count: int) -> Float[Tensor, " steps"]:
        """Return the schedule's factors, computed once for all members of a data set."""
        key = (data, first, count)
        if key not in self._factors:
            factors = [self._schedules[data](step) for step in range(first, first + count)]
            self._factors[key] = torch.tensor(factors, dtype=torch.float64)
        return self._factors[key]


def _scalar(value: float | None) -> Float[Tensor, ""] | None:
    return None if value is None else torch.tensor(value, dtype=torch.float64)
