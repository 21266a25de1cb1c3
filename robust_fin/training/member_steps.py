"""The steps of members: one after the other through the compiled loop, or stacked by vmap.

Both do the same arithmetic, which is `steps.OneStep`. The compiled loop visits one member for
many steps, because a small net's state then stays in the first-level cache and the member is bit
for bit the single run; stacked steps need no compiler and take a block of members at once.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap

from robust_fin.training.adamw_step import step_scalars
from robust_fin.training.hashed_dropout import step_keys
from robust_fin.training.loop_trace import LoopInputs
from robust_fin.training.member_states import MemberState
from robust_fin.training.steps import OneStep, StepLoop, StepResult, first_bad

_TRIAL_STEPS, _TRIAL_BLOCKS = 3, (16, 64, 256)


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


class MemberEngine(Protocol):
    """Does the steps of some members that share a data set and a number of steps.

    Attributes:
        block: members taken at once.
    """

    block: int

    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Take every member's steps; its state is changed in place."""
        ...


class LoopedMembers:
    """One member after the other through one compiled loop."""

    block = 1

    def __init__(self, loop: StepLoop) -> None:
        """Share the loop; it holds no state."""
        self.loop = loop

    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Take every member's steps; its state is changed in place."""
        pairs = zip(states, work, strict=True)
        return [self.loop.run(state, **one._asdict()) for state, one in pairs]


class StackedMembers:
    """A block of members at once, by torch.func.vmap; any device, no compiler.

    Args:
        step: of one member.
        block: members at once; None measures which is fastest at the first call.
    """

    def __init__(self, step: OneStep, *, block: int | None) -> None:
        """Nothing measured yet."""
        self._step = vmap(step)
        self._settings = step.settings
        self._measure = block is None
        self.block = block or max(_TRIAL_BLOCKS)

    def run(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        """Take every member's steps; its state is changed in place."""
        if self._measure:
            self.block, self._measure = self._fastest(states, work), False
        found: list[StepResult] = []
        for first in range(0, len(states), self.block):
            part = slice(first, first + self.block)
            found += self._block(states[part], work[part])
        return found

    @torch.no_grad()
    def _block(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> list[StepResult]:
        carry = _stacked([state.vectors for state in states])
        fixed = _stacked([_fixed(state, one) for state, one in zip(states, work, strict=True)])
        moving = self._moving(states, work)
        x, target, rows = work[0].x, work[0].target, torch.stack([one.rows for one in work], dim=1)
        outputs = []
        for step, taken in enumerate(rows):
            now = tuple(one[:, step] for one in moving)
            carry, output = self._step(LoopInputs(carry, now, (x[taken], target[taken]), fixed))
            outputs.append(output)
        loss, norm = (torch.stack(one, dim=1) for one in zip(*outputs, strict=True))
        for number, state in enumerate(states):
            torch._foreach_copy_(list(state.vectors), [one[number] for one in carry])
        return [_result(*one) for one in zip(states, loss, norm, strict=True)]

    def _moving(
        self, states: Sequence[MemberState], work: Sequence[MemberWork]
    ) -> tuple[Tensor, Tensor]:
        scalars, keys = [], []
        for state, one in zip(states, work, strict=True):
            numbers = step_scalars(
                one.lr,
                first_step=state.count,
                weight_decay=one.weight_decay,
                betas=self._settings.betas,
            )
            scalars.append(numbers.to(state.parameters.dtype))
            keys.append(step_keys(one.seed, first_step=state.count, steps=len(one.lr)))
        return torch.stack(scalars), torch.stack(keys)

    def _fastest(self, states: Sequence[MemberState], work: Sequence[MemberWork]) -> int:
        """The block with the most member-steps a second, on copies of the first members."""
        seconds: dict[int, float] = {}
        for block in _TRIAL_BLOCKS:
            size = min(block, len(states))
            trial = [state.copied() for state in states[:size]]
            few = [
                one._replace(rows=one.rows[:_TRIAL_STEPS], lr=one.lr[:_TRIAL_STEPS]) for one in work
            ]
            self._block(trial, few[:size])  # the first call pays for what torch sets up
            began = time.perf_counter()
            self._block(trial, few[:size])
            seconds[block] = (time.perf_counter() - began) / size
        return min(seconds, key=lambda block: seconds[block])


def _fixed(state: MemberState, work: MemberWork) -> tuple[Tensor, ...]:
    given = [one for one in (work.loss_setting, work.dropout) if one is not None]
    dtype = state.parameters.dtype
    return (*(one.to(dtype) for one in given), *state.constants)


def _stacked(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(list(one)) for one in zip(*parts, strict=True))


def _result(state: MemberState, loss: Tensor, norm: Tensor) -> StepResult:
    bad = None if bool(state.alive) else first_bad(loss, norm)
    state.count += len(loss) if bad is None else bad
    return StepResult(loss, norm, bad)
