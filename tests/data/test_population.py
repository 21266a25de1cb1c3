"""Windows of steps, and the orders of rows of many members."""

from itertools import pairwise

import pytest
import torch

from robust_fin.data.batches import (
    CallPlan,
    EpochOrder,
    MemberOrders,
    ScoredBatch,
    StepWindow,
    TrainWindows,
)
from robust_fin.data.datamodule import MemberData, PopulationDataModule

EMPTY = ScoredBatch(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0))


def set_of(rows: int, *, val: int = 0, used: list[int] | None = None) -> MemberData:
    span = ScoredBatch(torch.zeros(val, 2), torch.zeros(val), torch.zeros(val))
    return MemberData(
        torch.zeros(rows, 2),
        torch.zeros(rows),
        span,
        0.5,
        0.5,
        to_rank=lambda scores: scores,
        rows=None if used is None else torch.tensor(used),
    )


def windows(loader: TrainWindows, epoch: int) -> list[StepWindow]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_windows_are_the_calls_of_the_plan() -> None:
    loader = TrainWindows(CallPlan(4, 10, 10))
    assert len(loader) == 3
    assert windows(loader, 2) == [StepWindow(2, 0, 4), StepWindow(2, 4, 8), StepWindow(2, 8, 10)]


def test_a_window_ends_where_a_validation_is_due() -> None:
    loader = TrainWindows(CallPlan(4, 10, 5))
    assert [(one.start, one.stop) for one in windows(loader, 0)] == [
        (0, 4),
        (4, 5),
        (5, 9),
        (9, 10),
    ]


@pytest.mark.parametrize("steps", [1, 7, 35, 36, 39, 100])
@pytest.mark.parametrize("length", [1, 2, 4, 10, 512])
def test_calls_end_where_a_validation_is_due_and_nowhere_else_in_its_number(
    steps: int, length: int
) -> None:
    """Lightning validates after every so many calls, and knows nothing of steps."""
    for every in range(1, steps + 1):
        plan = CallPlan(length, steps, every)
        borders = plan.boundaries()
        assert borders[0] == 0
        assert borders[-1] == steps
        calls = [after - before for before, after in pairwise(borders)]
        assert min(calls) >= 1
        assert max(calls) <= length
        places = range(plan.calls_per_validation, len(borders), plan.calls_per_validation)
        assert [borders[place] for place in places] == list(range(every, steps + 1, every))


@pytest.mark.parametrize("step", range(10))
def test_a_checkpoint_in_the_middle_goes_on_with_the_next_step(step: int) -> None:
    loader = TrainWindows(CallPlan(4, 10, 10))
    loader.load_state_dict({"next_batch": step})
    found = windows(loader, 1)
    assert [at for one in found for at in range(one.start, one.stop)] == list(range(step, 10))
    assert loader.state_dict() == {"next_batch": 10}
    assert len(windows(loader, 2)) == 3


def test_steps_that_are_given_back_are_gone_on_with() -> None:
    loader = TrainWindows(CallPlan(4, 10, 10))
    passing = iter(loader)
    next(passing)
    assert next(passing) == StepWindow(0, 4, 8)
    loader.rewind(3)
    again = TrainWindows(CallPlan(4, 10, 10))
    again.load_state_dict(loader.state_dict())
    assert next(iter(again)) == StepWindow(0, 5, 8)


def test_a_checkpoint_at_the_end_of_an_epoch_starts_the_next() -> None:
    loader = TrainWindows(CallPlan(4, 10, 10))
    loader.load_state_dict({"next_batch": 10})
    assert windows(loader, 1)[0] == StepWindow(1, 0, 4)


def test_val_is_the_data_sets_that_have_one() -> None:
    sets = [set_of(8, val=3), set_of(8), set_of(8, val=1)]
    data = PopulationDataModule(sets, CallPlan(4, 10, 10))
    assert data.val_dataloader() == [0, 2]


def test_a_set_is_as_large_as_the_rows_it_trains_on() -> None:
    assert set_of(8).size == 8
    assert set_of(8, used=[1, 5, 6]).size == 3


@pytest.mark.parametrize("rows", [1, 17, 1000, 70_000])
def test_an_order_is_the_same_in_four_bytes_a_row_as_in_eight(rows: int) -> None:
    order = EpochOrder(rows, batch_size=1, seed=5)
    for epoch in (0, 3):
        order.set_epoch(epoch)
        short = order.permutation(epoch, dtype=torch.int32)
        assert short.dtype == torch.int32
        assert torch.equal(short.long(), order.permutation())
        assert sorted(short.tolist()) == list(range(rows))


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_orders_are_those_of_single_runs_whether_kept_or_drawn_anew(limit: int) -> None:
    orders = [EpochOrder(50, batch_size=4, seed=seed) for seed in (1, 2)]
    members = MemberOrders(orders, limit=limit)
    assert members.keeps == (limit > 0)
    for epoch in (0, 1):
        members.enter(epoch)
        for k, seed in enumerate((1, 2)):
            alone = EpochOrder(50, batch_size=4, seed=seed)
            alone.set_epoch(epoch)
            wanted = alone.begin()[1]
            for start, stop in ((0, 5), (5, 12), (3, 4)):
                rows = members.rows(k, start, stop)
                assert rows.dtype == torch.int64
                assert torch.equal(rows, wanted[start:stop])
    assert len(members._kept) == (2 if limit else 0)


def test_permutations_are_kept_while_four_bytes_a_row_of_each_fit() -> None:
    orders = [EpochOrder(1000, batch_size=4, seed=seed) for seed in range(10)]
    assert MemberOrders(orders, limit=4 * 10 * 1000).keeps
    assert not MemberOrders(orders, limit=4 * 10 * 1000 - 1).keeps
    shared = [orders[0]] * 10_000  # one permutation for all of them
    assert MemberOrders(shared, limit=4 * 1000).keeps
