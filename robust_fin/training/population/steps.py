"""Optimizer steps of all members: through the compiled loop, or stacked by vmap."""

import copy
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

from robust_fin.data.batches import CallPlan, EpochOrder
from robust_fin.data.datamodule import MemberData, MemberOrders, StepWindow
from robust_fin.training.engine.loop_library import LoopLibrary
from robust_fin.training.engine.step_state import step_keys, step_scalars
from robust_fin.training.engine.steps import (
    StepLoop,
    StepResult,
    TrainingStep,
    first_nonfinite_step,
)
from robust_fin.training.engine.trace import LoopInputs, trace_step
from robust_fin.training.population.members import Member, MemberState

AUTO = "auto"
_STACKED_TRIALS, _LOOPED_TRIALS = (16, 64, 256), (1, 8, 32)


class MemberWork(NamedTuple):
    """What one member does in a call; see `StepLoop.run`."""

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
    """Does the steps of some members that share a data set and a number of steps.

    Attributes:
        block: members taken at once.
    """

    block: int

    def settle(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> None:
        """Choose the block by a short measurement where none was given; before threads share it."""
        ...

    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Take every member's steps, at most a block of them; the states are changed in place."""
        ...


class LoopedMembers:
    """Compiled: one member after the other, or a block of them in one loop.

    Args:
        loop: of one member; it holds no state.
        block: members in one loop; a group that does not fill a block is taken one by one. AUTO
            measures.
    """

    def __init__(self, loop: StepLoop, *, block: int | str = 1) -> None:
        """Compile the block where its size is known."""
        self.loop = loop
        self._measure = block == AUTO
        self._loops: dict[int, BlockLoop] = {}
        self.block = max(_LOOPED_TRIALS) if isinstance(block, str) else block
        if not self._measure:
            self._compile(self.block)

    def settle(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> None:
        """Choose the block by a short measurement where none was given; before threads share it."""
        if not self._measure:
            return
        sizes = [size for size in _LOOPED_TRIALS if size <= len(states)]
        for size in sizes:
            self._compile(size)
        self.block, self._measure = fastest(self.run, sizes, states, work, steps=64), False

    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Take every member's steps; the states are changed in place."""
        if len(states) in self._loops:
            return self._loops[len(states)].run(states, work)
        pairs = zip(states, work, strict=True)
        return [self.loop.run(state, **one._asdict()) for state, one in pairs]

    def _compile(self, size: int) -> None:
        if size > 1:
            self._loops[size] = BlockLoop(self.loop, members=size)


class BlockLoop:
    """A compiled loop over the steps of several members at once.

    Args:
        loop: of one member.
        members: as many as every call has.
    """

    def __init__(self, loop: StepLoop, *, members: int) -> None:
        """Compile, or load from the cache."""
        self._settings = loop.step.settings
        self._members, self._step = members, vmap(loop.step)
        example = [tuple(torch.stack([one] * members) for one in part) for part in loop.example]
        flat = tuple(one.flatten(0, 1) for one in example[2])
        inputs = LoopInputs(example[0], example[1], flat, example[3])
        self._library = LoopLibrary(trace_step(self._body, inputs, matmul=loop.products))

    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Take every member's steps; the states are changed in place."""
        inputs, rows = stacked(states, work, betas=self._settings.betas)
        loss, norm = self._library.run(inputs, rows=rows.flatten(1))
        return stored(states, inputs.carry, loss.T, norm.T)

    def _body(self, inputs: LoopInputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        apart = tuple(one.unflatten(0, (self._members, -1)) for one in inputs.gathered)
        carry, outputs = self._step(inputs._replace(gathered=apart))
        return carry, outputs


class StackedMembers:
    """A block of members at once, by torch.func.vmap; no compiler.

    Args:
        step: of one member.
        block: members at once; AUTO measures.
    """

    def __init__(self, step: TrainingStep, *, block: int | str) -> None:
        """Nothing measured yet."""
        self._step, self._own = step, threading.local()
        self._settings = step.settings
        self._measure = block == AUTO
        self.block = max(_STACKED_TRIALS) if isinstance(block, str) else block

    def settle(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> None:
        """Choose the block by a short measurement where none was given; before threads share it."""
        if self._measure:
            sizes = [size for size in _STACKED_TRIALS if size <= len(states)] or [len(states)]
            self.block, self._measure = fastest(self.run, sizes, states, work, steps=3), False

    @torch.no_grad()
    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Take every member's steps; the states are changed in place."""
        inputs, rows = stacked(states, work, betas=self._settings.betas)
        (x, target), carry, outputs = inputs.gathered, inputs.carry, []
        take = self._threads_own()
        for step, taken in enumerate(rows):
            moving = tuple(one[step] for one in inputs.moving)
            now = LoopInputs(carry, moving, (x[taken], target[taken]), inputs.fixed)
            carry, output = take(now)
            outputs.append(output)
        loss, norm = (torch.stack(one, dim=1) for one in zip(*outputs, strict=True))
        return stored(states, carry, loss, norm)

    def _threads_own(self) -> Callable[[LoopInputs], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """The step on a copy of the net: a functional call puts its weights there for a while."""
        if not hasattr(self._own, "step"):
            self._own.step = vmap(replace(self._step, net=copy.deepcopy(self._step.net)))
        return self._own.step


Run = Callable[[Sequence[MemberState], Sequence[MemberWork]], list[StepResult]]


def fastest(
    run: Run,
    sizes: Sequence[int],
    states: Sequence[MemberState],
    work: Sequence[MemberWork],
    *,
    steps: int,
) -> int:
    """The block size with the most member-steps a second, tried on copies of the first members.

    Args:
        run: takes as many members as it is given.
        sizes: to choose from, none above the number of members.
        states: left as they are.
        work: of those members.
        steps: of a trial.
    """
    seconds: dict[int, float] = {}
    few = [one._replace(rows=one.rows[:steps], lr=one.lr[:steps]) for one in work]
    for size in sizes:
        trial = [state.copied() for state in states[:size]]
        run(trial, few[:size])  # the first call pays for what torch sets up
        began = time.perf_counter()
        run(trial, few[:size])
        seconds[size] = (time.perf_counter() - began) / size
    return min(seconds, key=lambda size: seconds[size])


def stacked(
    states: Sequence[MemberState], work: Sequence[MemberWork], *, betas: tuple[float, float]
) -> tuple[LoopInputs, Int[Tensor, "steps members batch"]]:
    """Inputs of a vmapped step, moving ones with a leading axis of steps; and the row numbers.

    Args:
        states: copied into the carry.
        work: of each, on one data set and as many steps.
        betas: AdamW's.
    """
    first = work[0]
    dtype = states[0].parameters.dtype
    scalars, keys, fixed = [], [], []
    for state, one in zip(states, work, strict=True):
        numbers = step_scalars(
            one.lr, first_step=state.count, weight_decay=one.weight_decay, betas=betas
        )
        scalars.append(numbers.to(dtype))
        keys.append(step_keys(one.seed, first_step=state.count, steps=len(one.lr)))
        given = [one.loss_setting, one.dropout]
        fixed.append((*(v.to(dtype) for v in given if v is not None), *state.constants))
    return LoopInputs(
        _columns([state.vectors for state in states]),
        (torch.stack(scalars, dim=1), torch.stack(keys, dim=1)),
        (first.x, first.target),
        _columns(fixed),
    ), torch.stack([one.rows for one in work], dim=1)


def stored(
    states: Sequence[MemberState],
    carry: tuple[Tensor, ...],
    loss: Float[Tensor, "members steps"],
    norm: Float[Tensor, "members steps"],
) -> list[StepResult]:
    """Write a stacked carry back into the states, and say what each member's steps did."""
    results = []
    for number, state in enumerate(states):
        torch._foreach_copy_(list(state.vectors), [one[number] for one in carry])
        bad = None if bool(state.alive) else first_nonfinite_step(loss[number], norm[number])
        state.count += loss.shape[1] if bad is None else bad
        results.append(StepResult(loss[number], norm[number], bad))
    return results


def _columns(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(list(one)) for one in zip(*parts, strict=True))


Schedule = Callable[[int], float]


class MemberPace:
    """Each member goes through its own data set at its own pace, as a run of its own would.

    Args:
        members: their settings.
        sets: what they train on.
        batch_size: rows a step.
        epoch_steps: optimizer steps an epoch of each data set.
        schedules: of each data set: optimizer step, counted from 0 -> factor of the learning rate.
        plan: windows on the scale of the data set with the most steps.
        limits: optimizer steps after which a member is done; None trains all to the end.
    """

    def __init__(
        self,
        members: Sequence[Member],
        sets: Sequence[MemberData],
        *,
        batch_size: int,
        epoch_steps: Sequence[int],
        schedules: Sequence[Schedule],
        plan: CallPlan,
        limits: Sequence[int] | None = None,
    ) -> None:
        """Nothing is drawn yet."""
        self.members, self.sets, self.plan = members, sets, plan
        self._epoch_steps, self._schedules, self._limits = epoch_steps, schedules, limits
        shared: dict[tuple[int, int], EpochOrder] = {}
        for one in members:
            order = EpochOrder(sets[one.data].size, batch_size=batch_size, seed=one.order_seed)
            shared.setdefault((one.data, one.order_seed), order)
        self._orders = MemberOrders([shared[one.data, one.order_seed] for one in members])
        self._factors: dict[tuple[int, int, int], Float[torch.Tensor, " steps"]] = {}

    def enter(self, epoch: int) -> None:
        """Forget the orders of another epoch; before any thread asks for rows."""
        self._orders.enter(epoch)
        self._factors = {}

    def span(self, member: int, window: StepWindow) -> tuple[int, int]:
        """First step of a member's epoch in the window, and the step after its last."""
        own, whole = self._epoch_steps[self.members[member].data], self.plan.steps
        start, stop = (own * step // whole for step in (window.start, window.stop))
        if self._limits is not None:
            left = self._limits[member] - window.epoch * own
            start, stop = min(start, max(0, left)), min(stop, max(0, left))
        return start, stop

    def blocks(
        self, members: Sequence[int], window: StepWindow, *, size: int
    ) -> Iterator[Sequence[int]]:
        """Members with steps in the window, in blocks of one data set and number of steps."""

        def alike(member: int) -> tuple[int, int]:
            start, stop = self.span(member, window)
            return self.members[member].data, stop - start

        busy = [one for one in members if alike(one)[1]]
        for _, some in groupby(sorted(busy, key=alike), key=alike):
            group = list(some)
            yield from (group[first : first + size] for first in range(0, len(group), size))

    def work(self, member: int, window: StepWindow) -> MemberWork:
        """What one member does in the window."""
        settings = self.members[member]
        one, (start, stop) = self.sets[settings.data], self.span(member, window)
        rows = self._orders.rows(member, start, stop)
        done = window.epoch * self._epoch_steps[settings.data]
        return MemberWork(
            one.x,
            one.target,
            rows if one.rows is None else one.rows[rows],
            self._factor(settings.data, done + start, stop - start) * settings.lr,
            settings.weight_decay,
            settings.seed,
            _scalar(settings.delta),
            _scalar(settings.dropout),
        )

    def _factor(self, data: int, first: int, count: int) -> Float[torch.Tensor, " steps"]:
        """The schedule's factors, once for all members of a data set."""
        key = (data, first, count)
        if key not in self._factors:
            factors = [self._schedules[data](step) for step in range(first, first + count)]
            self._factors[key] = torch.tensor(factors, dtype=torch.float64)
        return self._factors[key]


def _scalar(value: float | None) -> Float[torch.Tensor, ""] | None:
    return None if value is None else torch.tensor(value, dtype=torch.float64)
