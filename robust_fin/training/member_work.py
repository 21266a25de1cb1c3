"""Who does what in a window: each member's steps, rows and learning rates."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Float

from robust_fin.data.batches import CallPlan, EpochOrder
from robust_fin.data.population import MemberOrders, MemberSet, Window
from robust_fin.training.member_steps import MemberWork
from robust_fin.training.members import Member

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
        sets: Sequence[MemberSet],
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

    def span(self, member: int, window: Window) -> tuple[int, int]:
        """First step of a member's epoch in the window, and the step after its last."""
        own, whole = self._epoch_steps[self.members[member].data], self.plan.steps
        start, stop = (own * step // whole for step in (window.start, window.stop))
        if self._limits is not None:
            left = self._limits[member] - window.epoch * own
            start, stop = min(start, max(0, left)), min(stop, max(0, left))
        return start, stop

    def blocks(
        self, members: Sequence[int], window: Window, *, size: int
    ) -> Iterator[Sequence[int]]:
        """Members with steps in the window, in blocks of one data set and number of steps."""

        def alike(member: int) -> tuple[int, int]:
            start, stop = self.span(member, window)
            return self.members[member].data, stop - start

        busy = [one for one in members if alike(one)[1]]
        for _, some in groupby(sorted(busy, key=alike), key=alike):
            group = list(some)
            yield from (group[first : first + size] for first in range(0, len(group), size))

    def work(self, member: int, window: Window) -> MemberWork:
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
