import numpy as np
import pytest
import torch

from robust_fin.data.batches import (
    Batch,
    Call,
    CallPlan,
    EpochOrder,
    ScoreBatches,
    ScoredBatch,
    TrainBatches,
    TrainCalls,
)

ROWS = 1000


def batches(
    *, rows: int = ROWS, batch_size: int = 16, seed: int = 0, rank: int = 0, world_size: int = 1
) -> TrainBatches:
    """Rows that say their own number, in x and in the target."""
    number = torch.arange(rows, dtype=torch.float32)
    x = torch.stack([number, -number], dim=1)
    order = EpochOrder(rows, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
    return TrainBatches(x, number, order=order)


def epoch_rows(loader: TrainBatches, epoch: int) -> list[list[int]]:
    loader.sampler.set_epoch(epoch)
    return [batch.target.int().tolist() for batch in loader]


def test_a_batch_is_named_and_its_parts_belong_together() -> None:
    batch = next(iter(batches()))
    assert isinstance(batch, Batch)
    assert batch.x.shape == (16, 2)
    assert torch.equal(batch.x[:, 0], batch.target)
    assert torch.equal(batch.x[:, 1], -batch.target)


def test_an_epoch_uses_every_row_at_most_once_and_only_full_batches() -> None:
    got = epoch_rows(batches(), 0)
    assert [len(rows) for rows in got] == [16] * 62
    assert len({row for rows in got for row in rows}) == 62 * 16


def test_over_epochs_no_row_is_forgotten() -> None:
    loader = batches()
    seen = {row for epoch in range(4) for rows in epoch_rows(loader, epoch) for row in rows}
    assert seen == set(range(ROWS))


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    torch.manual_seed(1)
    first = epoch_rows(batches(), 3)
    torch.manual_seed(2)
    loader = batches()
    for epoch in (0, 1, 7):
        epoch_rows(loader, epoch)
    assert epoch_rows(loader, 3) == first
    assert epoch_rows(loader, 4) != first
    assert epoch_rows(batches(seed=1), 3) != first


def test_the_order_of_the_rows_is_a_shuffle() -> None:
    order = batches().order.permutation().numpy()
    assert sorted(order.tolist()) == list(range(ROWS))
    assert abs(np.corrcoef(order, np.arange(ROWS))[0, 1]) < 0.15


@pytest.mark.parametrize("taken", [1, 255, 256, 257, 600])
def test_a_checkpoint_in_the_middle_goes_on_with_the_very_next_batch(taken: int) -> None:
    whole = epoch_rows(batches(rows=2500, batch_size=4), 5)
    assert len(whole) == 625
    stopped = batches(rows=2500, batch_size=4)
    stopped.sampler.set_epoch(5)
    going = iter(stopped)
    for _ in range(taken):
        next(going)
    resumed = batches(rows=2500, batch_size=4)
    resumed.load_state_dict(stopped.state_dict())
    assert epoch_rows(resumed, 5) == whole[taken:]
    assert epoch_rows(resumed, 6) == epoch_rows(batches(rows=2500, batch_size=4), 6)


def test_a_checkpoint_at_the_end_of_an_epoch_starts_the_next() -> None:
    done = batches()
    epoch_rows(done, 0)
    resumed = batches()
    resumed.load_state_dict(done.state_dict())
    assert epoch_rows(resumed, 1) == epoch_rows(batches(), 1)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_out_the_global_batches(world: int) -> None:
    whole = epoch_rows(batches(batch_size=12), 2)
    parts = [
        epoch_rows(batches(batch_size=12 // world, rank=rank, world_size=world), 2)
        for rank in range(world)
    ]
    assert [len(part) for part in parts] == [len(whole)] * world
    joined = [[row for part in parts for row in part[step]] for step in range(len(whole))]
    assert joined == whole


def test_fewer_rows_than_a_batch_make_an_empty_epoch() -> None:
    assert len(batches(rows=7, batch_size=8)) == 0
    assert epoch_rows(batches(rows=7, batch_size=8), 0) == []


def span(rows: int) -> ScoredBatch:
    number = torch.arange(rows, dtype=torch.float32)
    return ScoredBatch(number[:, None], number, number / 10)


def test_a_span_is_scored_in_order_and_its_last_batch_may_be_short() -> None:
    loader = ScoreBatches(span(10), batch_size=4)
    got = list(loader)
    assert all(isinstance(batch, ScoredBatch) for batch in got)
    assert [batch.target.int().tolist() for batch in got] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3
    assert torch.equal(got[2].outcome, torch.tensor([0.8, 0.9]))


@pytest.mark.parametrize("rows", [1, 2, 10, 101])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_scored_once_over_all_processes(rows: int, world: int) -> None:
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


def test_calls_hold_the_steps_of_the_plain_loader_in_order() -> None:
    plain = epoch_rows(batches(), 4)
    loader = calls(steps_per_call=20)
    loader.sampler.set_epoch(4)
    got = list(loader)
    assert all(isinstance(call, Call) for call in got)
    assert [len(call.rows) for call in got] == [20, 20, 20, 2]
    assert [step.tolist() for call in got for step in call.rows] == plain
    assert len(loader) == 4


def test_a_call_ends_where_a_validation_is_due() -> None:
    plan = CallPlan(steps_per_call=20, steps=62, val_every=30)
    assert plan.boundaries() == [0, 20, 30, 50, 60, 62]
    assert plan.calls_per_validation == 2
    assert [plan.completed_calls(steps) for steps in (0, 19, 20, 30, 61, 62)] == [0, 0, 1, 2, 4, 5]


@pytest.mark.parametrize("taken", [1, 19, 20, 45, 61])
def test_calls_go_on_in_the_middle_of_one(taken: int) -> None:
    plain = epoch_rows(batches(), 1)
    loader = calls(steps_per_call=20)
    loader.sampler.set_epoch(1)
    loader.load_state_dict({"next_batch": taken})
    assert [step.tolist() for call in loader for step in call.rows] == plain[taken:]


def test_steps_given_back_are_taken_again() -> None:
    plain = epoch_rows(batches(), 0)
    stopped = calls(steps_per_call=20)
    next(iter(stopped))
    stopped.rewind(7)
    resumed = calls(steps_per_call=20)
    resumed.load_state_dict(stopped.state_dict())
    assert next(iter(resumed)).rows[0].tolist() == plain[13]
