"""Steps, rows and learning rates of each member in a window."""

from collections.abc import Sequence

import pytest
import torch

from robust_fin.data.batches import CallPlan, EpochOrder, ScoredBatch, StepWindow
from robust_fin.data.datamodule import MemberData
from robust_fin.training.population.members import Member
from robust_fin.training.population.steps import MemberPace

BATCH = 4


def set_of(rows: int, *, used: torch.Tensor | None = None) -> MemberData:
    """Rows that say their own number."""
    number = torch.arange(rows, dtype=torch.float32)
    val = ScoredBatch(torch.zeros(0, 1), torch.zeros(0), torch.zeros(0))
    return MemberData(
        number[:, None], number, val, 0.5, 0.5, to_rank=lambda scores: scores, rows=used
    )


def member(seed: int, *, data: int = 0, lr: float = 1.0, order_seed: int | None = None) -> Member:
    order = seed if order_seed is None else order_seed
    return Member(seed, order, lr, weight_decay=0.1 * seed, delta=0.2, data=data)


def pace_of(
    members: Sequence[Member],
    sets: Sequence[MemberData],
    *,
    steps: Sequence[int],
    limits: Sequence[int] | None = None,
) -> MemberPace:
    return MemberPace(
        members,
        sets,
        batch_size=BATCH,
        epoch_steps=steps,
        schedules=[lambda step: step + 1.0, lambda step: 100.0 * (step + 1)][: len(sets)],
        plan=CallPlan(4, max(steps), max(steps)),
        limits=limits,
    )


def test_smaller_data_set_has_fewer_steps_per_window_and_the_same_epochs() -> None:
    pace = pace_of([member(0), member(1, data=1)], [set_of(40), set_of(12)], steps=[10, 3])
    windows = [StepWindow(0, 0, 4), StepWindow(0, 4, 8), StepWindow(0, 8, 10)]
    assert [pace.span(0, one) for one in windows] == [(0, 4), (4, 8), (8, 10)]
    assert [pace.span(1, one) for one in windows] == [(0, 1), (1, 2), (2, 3)]


def test_member_stops_at_its_limit() -> None:
    members = [member(0), member(1), member(2)]
    pace = pace_of(members, [set_of(40)], steps=[10], limits=[13, 20, 0])
    spans = [pace.span(0, StepWindow(1, *span)) for span in ((0, 4), (2, 4), (4, 8))]
    assert spans == [(0, 3), (2, 3), (3, 3)]
    assert pace.span(1, StepWindow(1, 8, 10)) == (8, 10)
    assert pace.span(1, StepWindow(2, 0, 4)) == (0, 0)
    assert list(pace.blocks([0, 1, 2], StepWindow(1, 4, 8), size=8)) == [[1]]


def test_block_has_one_data_set_and_one_step_count() -> None:
    members = [member(k, data=k % 2) for k in range(7)]
    pace = pace_of(members, [set_of(40), set_of(12)], steps=[10, 3])
    found = list(pace.blocks(range(7), StepWindow(0, 0, 4), size=2))
    assert found == [[0, 2], [4, 6], [1, 3], [5]]
    assert list(pace.blocks(range(7), StepWindow(0, 0, 1), size=9)) == [[0, 2, 4, 6]]


def test_rows_equal_those_of_the_single_run_with_the_seed() -> None:
    pace = pace_of([member(3), member(4)], [set_of(42)], steps=[10])
    for k, seed in enumerate((3, 4)):
        order = EpochOrder(42, batch_size=BATCH, seed=seed)
        for epoch in (0, 1):
            order.set_epoch(epoch)
            pace.enter(epoch)
            wanted = order.begin()[1]
            assert torch.equal(pace.work(k, StepWindow(epoch, 4, 8)).rows, wanted[4:8])


def test_shared_order_is_drawn_once() -> None:
    members = [member(3, order_seed=9), member(4, order_seed=9)]
    pace = pace_of(members, [set_of(42)], steps=[10])
    pace.enter(0)
    rows = [pace.work(k, StepWindow(0, 0, 4)).rows for k in (0, 1)]
    assert torch.equal(*rows)
    assert pace._orders._orders[0] is pace._orders._orders[1]


def test_data_set_can_train_on_a_subset_of_its_rows() -> None:
    used = torch.tensor([30, 2, 11, 7, 19, 4, 23, 16])
    pace = pace_of([member(0)], [set_of(40, used=used)], steps=[2])
    pace.enter(0)
    rows = pace.work(0, StepWindow(0, 0, 2)).rows
    assert sorted(rows.flatten().tolist()) == sorted(used.tolist())
    order = EpochOrder(8, batch_size=BATCH, seed=0).permutation(0)
    assert torch.equal(rows.flatten(), used[order])


def test_learning_rates_follow_the_schedule_of_the_data_set() -> None:
    members = [member(0, lr=2.0), member(1, data=1, lr=0.5)]
    pace = pace_of(members, [set_of(40), set_of(12)], steps=[10, 3])
    pace.enter(1)
    work = [pace.work(k, StepWindow(1, 4, 8)) for k in (0, 1)]
    assert work[0].lr.tolist() == [2.0 * step for step in (15, 16, 17, 18)]
    assert work[1].lr.tolist() == [0.5 * 100 * step for step in (5,)]
    assert [one.weight_decay for one in work] == [0.0, 0.1]
    assert [one.seed for one in work] == [0, 1]
    assert float(work[0].loss_setting) == pytest.approx(0.2)
    assert work[0].dropout is None
