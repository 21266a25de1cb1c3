"""The band of the members, point by point."""

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from robust_fin.training.engine.steps import StepResult
from robust_fin.training.population.module import MemberCurves


class Kept(DummyLogger):
    """Keeps the points it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int, **_: Any) -> None:
        self.points[step] = metrics


def result(losses: list[float]) -> StepResult:
    loss = torch.tensor(losses)
    return StepResult(loss, 10 * loss, None)


def drawn(results: list[StepResult], *, first: int, count: int, every: int) -> dict[int, Any]:
    kept = Kept()
    MemberCurves().draw([kept], results, first=first, count=count, every=every)
    return kept.points


def test_a_point_is_the_mean_and_the_central_95_percent_over_members() -> None:
    members = [result([float(k), 100.0 + k]) for k in range(41)]
    points = drawn(members, first=0, count=2, every=1)
    assert list(points) == [0, 1]
    for step, least in ((0, 0.0), (1, 100.0)):
        low, high = np.percentile(least + np.arange(41), [2.5, 97.5])
        assert points[step] == {
            "members/train/objective_mean": pytest.approx(least + 20),
            "members/train/objective_low": pytest.approx(low),
            "members/train/objective_high": pytest.approx(high),
            "train/objective": pytest.approx(least + 20),
            "train/gradient_norm": pytest.approx(10 * (least + 20)),
            "members/train/gradient_norm_max": pytest.approx(10 * (least + 40)),
        }


@pytest.mark.parametrize(
    ("first", "every", "due"),
    [(0, 5, [4, 9]), (8, 5, [9, 14, 19]), (3, 1, list(range(3, 15))), (0, 50, []), (40, 50, [49])],
)
def test_points_fall_due_at_every_so_many_optimizer_steps(
    first: int, every: int, due: list[int]
) -> None:
    losses = [result([float(first + at) for at in range(12)])]
    points = drawn(losses, first=first, count=12, every=every)
    assert list(points) == due
    assert [point["train/objective"] for point in points.values()] == due


@pytest.mark.parametrize("count", [49, 98, 103, 1024])
def test_every_step_of_a_window_is_its_own_point(count: int) -> None:
    losses = [result([float(at) for at in range(count)])]
    points = drawn(losses, first=0, count=count, every=1)
    assert [point["train/objective"] for point in points.values()] == list(range(count))


def test_a_member_with_fewer_steps_is_drawn_at_its_share_of_the_window() -> None:
    slow, fast = result([0.0, 1.0]), result([0.0] * 6)
    points = drawn([slow, fast], first=0, count=6, every=1)
    assert [2 * point["train/objective"] for point in points.values()] == [0, 0, 0, 1, 1, 1]


def test_where_every_member_is_frozen_nothing_is_drawn() -> None:
    assert drawn([], first=0, count=5, every=1) == {}
