"""Order of training rows, batches, calls of several steps, and windows of many members."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from robust_fin.data.batches import (
    Batch,
    Call,
    CallPlan,
    EpochOrder,
    MemberOrders,
    ScoreBatches,
    ScoredBatch,
    StepWindow,
    TrainBatches,
    TrainCalls,
    TrainWindows,
)
from robust_fin.data.datamodule import MemberData, PopulationDataModule

ROWS = 1000


def batches(
    *, rows: int = ROWS, batch_size: int = 16, seed: int = 0, rank: int = 0, world_size: int = 1
) -> TrainBatches:
    """Create training batches whose x and target contain the row number."""
    number = torch.arange(rows, dtype=torch.float32)
    x = torch.stack([number, -number], dim=1)
    order = EpochOrder(rows, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
    return TrainBatches(x, number, order=order)


def epoch_rows(loader: TrainBatches, epoch: int) -> list[list[int]]:
    loader.sampler.set_epoch(epoch)
    return [batch.target.int().tolist() for batch in loader]


def test_batch_is_a_named_tuple_of_matching_rows() -> None:
    batch = next(iter(batches()))
    assert isinstance(batch, Batch)
    assert batch.x.shape == (16, 2)
    assert torch.equal(batch.x[:, 0], batch.target)
    assert torch.equal(batch.x[:, 1], -batch.target)


def test_epoch_uses_each_row_at_most_once_in_full_batches() -> None:
    got = epoch_rows(batches(), 0)
    assert [len(rows) for rows in got] == [16] * 62
    assert len({row for rows in got for row in rows}) == 62 * 16


def test_every_row_is_used_over_several_epochs() -> None:
    loader = batches()
    seen = {row for epoch in range(4) for rows in epoch_rows(loader, epoch) for row in rows}
    assert seen == set(range(ROWS))


def test_order_depends_only_on_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = epoch_rows(batches(), 3)
    torch.manual_seed(2)
    loader = batches()
    for epoch in (0, 1, 7):
        epoch_rows(loader, epoch)
    assert epoch_rows(loader, 3) == first
    assert epoch_rows(loader, 4) != first
    assert epoch_rows(batches(seed=1), 3) != first


def test_order_is_a_permutation_of_the_rows() -> None:
    order = batches().order.permutation().numpy()
    assert sorted(order.tolist()) == list(range(ROWS))
    assert abs(np.corrcoef(order, np.arange(ROWS))[0, 1]) < 0.15


@pytest.mark.parametrize("taken", [1, 255, 256, 257, 600])
def test_resume_within_an_epoch_continues_with_the_next_batch(taken: int) -> None:
    full = epoch_rows(batches(rows=2500, batch_size=4), 5)
    assert len(full) == 625
    stopped = batches(rows=2500, batch_size=4)
    stopped.sampler.set_epoch(5)
    iterator = iter(stopped)
    for _ in range(taken):
        next(iterator)
    resumed = batches(rows=2500, batch_size=4)
    resumed.load_state_dict(stopped.state_dict())
    assert epoch_rows(resumed, 5) == full[taken:]
    assert epoch_rows(resumed, 6) == epoch_rows(batches(rows=2500, batch_size=4), 6)


def test_resume_at_the_end_of_an_epoch_starts_the_next() -> None:
    done = batches()
    epoch_rows(done, 0)
    resumed = batches()
    resumed.load_state_dict(done.state_dict())
    assert epoch_rows(resumed, 1) == epoch_rows(batches(), 1)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_divide_the_global_batches(world: int) -> None:
    full = epoch_rows(batches(batch_size=12), 2)
    parts = [
        epoch_rows(batches(batch_size=12 // world, rank=rank, world_size=world), 2)
        for rank in range(world)
    ]
    assert [len(part) for part in parts] == [len(full)] * world
    joined = [[row for part in parts for row in part[step]] for step in range(len(full))]
    assert joined == full


def test_fewer_rows_than_batch_size_give_an_empty_epoch() -> None:
    assert len(batches(rows=7, batch_size=8)) == 0
    assert epoch_rows(batches(rows=7, batch_size=8), 0) == []


def span(rows: int) -> ScoredBatch:
    number = torch.arange(rows, dtype=torch.float32)
    return ScoredBatch(number[:, None], number, number / 10)


def test_span_is_scored_in_order_with_a_short_last_batch() -> None:
    loader = ScoreBatches(span(10), batch_size=4)
    got = list(loader)
    assert all(isinstance(batch, ScoredBatch) for batch in got)
    assert [batch.target.int().tolist() for batch in got] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3
    assert torch.equal(got[2].outcome, torch.tensor([0.8, 0.9]))


@pytest.mark.parametrize("rows", [1, 2, 10, 101])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_scored_once_over_all_ranks(rows: int, world: int) -> None:
    loaders = [
        ScoreBatches(span(rows), batch_size=4, rank=r, world_size=world) for r in range(world)
    ]
    got = [batch.target.int().tolist() for loader in loaders for batch in loader]
    assert [row for batch in got for row in batch] == list(range(rows))
    assert sum(map(len, loaders)) == len(got)


def calls(*, steps_per_call: int, val_every: int = 10**9, batch_size: int = 16) -> TrainCalls:
    single = batches(batch_size=batch_size)
    plan = CallPlan(steps_per_call, single.order.steps, min(val_every, single.order.steps))
    return TrainCalls(single.x, single.target, order=single.order, plan=plan)


def test_calls_contain_the_steps_of_the_plain_loader_in_order() -> None:
    plain = epoch_rows(batches(), 4)
    loader = calls(steps_per_call=20)
    loader.sampler.set_epoch(4)
    got = list(loader)
    assert all(isinstance(call, Call) for call in got)
    assert [len(call.rows) for call in got] == [20, 20, 20, 2]
    assert [step.tolist() for call in got for step in call.rows] == plain
    assert len(loader) == 4


def test_call_ends_when_a_validation_is_due() -> None:
    plan = CallPlan(steps_per_call=20, steps=62, val_every=30)
    assert plan.boundaries() == [0, 20, 30, 50, 60, 62]
    assert plan.calls_per_validation == 2
    assert [plan.completed_calls(steps) for steps in (0, 19, 20, 30, 61, 62)] == [0, 0, 1, 2, 4, 5]


@pytest.mark.parametrize("taken", [1, 19, 20, 45, 61])
def test_resume_within_a_call_continues_with_the_next_step(taken: int) -> None:
    plain = epoch_rows(batches(), 1)
    loader = calls(steps_per_call=20)
    loader.sampler.set_epoch(1)
    loader.load_state_dict({"next_batch": taken})
    assert [step.tolist() for call in loader for step in call.rows] == plain[taken:]


def test_rewound_steps_are_repeated_after_resume() -> None:
    plain = epoch_rows(batches(), 0)
    stopped = calls(steps_per_call=20)
    next(iter(stopped))
    stopped.rewind(7)
    resumed = calls(steps_per_call=20)
    resumed.load_state_dict(stopped.state_dict())
    assert next(iter(resumed)).rows[0].tolist() == plain[13]


EMPTY = ScoredBatch(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0))


def member_data(rows: int, *, val: int = 0, used: list[int] | None = None) -> MemberData:
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


def epoch_windows(loader: TrainWindows, epoch: int) -> list[StepWindow]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_windows_are_the_calls_of_the_plan() -> None:
    loader = TrainWindows(CallPlan(4, 10, 10))
    assert len(loader) == 3
    assert epoch_windows(loader, 2) == [
        StepWindow(2, 0, 4),
        StepWindow(2, 4, 8),
        StepWindow(2, 8, 10),
    ]


def test_window_ends_when_a_validation_is_due() -> None:
    loader = TrainWindows(CallPlan(4, 10, 5))
    assert [(window.start, window.stop) for window in epoch_windows(loader, 0)] == [
        (0, 4),
        (4, 5),
        (5, 9),
        (9, 10),
    ]


@pytest.mark.parametrize("steps", [1, 7, 35, 36, 39, 100])
@pytest.mark.parametrize("length", [1, 2, 4, 10, 512])
def test_validation_is_due_after_every_calls_per_validation_calls(steps: int, length: int) -> None:
    """Lightning validates after a fixed number of calls; it does not count steps."""
    for every in range(1, steps + 1):
        plan = CallPlan(length, steps, every)
        borders = plan.boundaries()
        assert borders[0] == 0
        assert borders[-1] == steps
        calls = [after - before for before, after in pairwise(borders)]
        assert min(calls) >= 1
        assert max(calls) <= length
        positions = range(plan.calls_per_validation, len(borders), plan.calls_per_validation)
        assert [borders[position] for position in positions] == list(range(every, steps + 1, every))


@pytest.mark.parametrize("step", range(10))
def test_resume_within_an_epoch_continues_with_the_next_window(step: int) -> None:
    loader = TrainWindows(CallPlan(4, 10, 10))
    loader.load_state_dict({"next_batch": step})
    windows = epoch_windows(loader, 1)
    steps = [number for window in windows for number in range(window.start, window.stop)]
    assert steps == list(range(step, 10))
    assert loader.state_dict() == {"next_batch": 10}
    assert len(epoch_windows(loader, 2)) == 3


def test_rewound_windows_are_repeated_after_resume() -> None:
    loader = TrainWindows(CallPlan(4, 10, 10))
    iterator = iter(loader)
    next(iterator)
    assert next(iterator) == StepWindow(0, 4, 8)
    loader.rewind(3)
    again = TrainWindows(CallPlan(4, 10, 10))
    again.load_state_dict(loader.state_dict())
    assert next(iter(again)) == StepWindow(0, 5, 8)


def test_resume_at_the_end_of_an_epoch_starts_the_next_windows() -> None:
    loader = TrainWindows(CallPlan(4, 10, 10))
    loader.load_state_dict({"next_batch": 10})
    assert epoch_windows(loader, 1)[0] == StepWindow(1, 0, 4)


def test_val_dataloader_lists_the_members_with_val_rows() -> None:
    sets = [member_data(8, val=3), member_data(8), member_data(8, val=1)]
    data = PopulationDataModule(sets, CallPlan(4, 10, 10))
    assert data.val_dataloader() == [0, 2]


def test_size_of_member_data_is_its_number_of_training_rows() -> None:
    assert member_data(8).size == 8
    assert member_data(8, used=[1, 5, 6]).size == 3


@pytest.mark.parametrize("rows", [1, 17, 1000, 70_000])
def test_int32_permutation_equals_the_int64_permutation(rows: int) -> None:
    order = EpochOrder(rows, batch_size=1, seed=5)
    for epoch in (0, 3):
        order.set_epoch(epoch)
        short = order.permutation(epoch, dtype=torch.int32)
        assert short.dtype == torch.int32
        assert torch.equal(short.long(), order.permutation())
        assert sorted(short.tolist()) == list(range(rows))


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_member_orders_equal_those_of_single_runs(limit: int) -> None:
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


def test_permutations_are_kept_while_4_bytes_per_row_fit() -> None:
    orders = [EpochOrder(1000, batch_size=4, seed=seed) for seed in range(10)]
    assert MemberOrders(orders, limit=4 * 10 * 1000).keeps
    assert not MemberOrders(orders, limit=4 * 10 * 1000 - 1).keeps
    shared = [orders[0]] * 10_000  # one permutation shared by all
    assert MemberOrders(shared, limit=4 * 1000).keeps
