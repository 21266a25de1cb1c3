import inspect

import pytest
import torch
from jaxtyping import TypeCheckError

from robust_fin.errors import ConfigError
from robust_fin.training.losses import (
    absolute,
    huber,
    squared,
    warmup_constant,
    warmup_cosine,
    warmup_linear,
)

LOSSES = {"huber": lambda s, t: huber(s, t, delta=0.1), "squared": squared, "absolute": absolute}


def test_losses_match_closed_forms() -> None:
    score, target = torch.tensor([0.5, 0.5]), torch.tensor([0.55, 0.9])
    assert huber(score, target, delta=0.1).item() == pytest.approx(
        (0.5 * 0.05**2 + 0.1 * (0.4 - 0.05)) / 2
    )
    assert squared(score, target).item() == pytest.approx((0.05**2 + 0.4**2) / 2)
    assert absolute(score, target).item() == pytest.approx(0.225)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_swapping_two_labels_changes_the_loss(name: str) -> None:
    score, target = torch.tensor([0.1, 0.5, 0.8]), torch.tensor([0.2, 0.9, 0.3])
    swapped = target[[1, 0, 2]]
    assert LOSSES[name](score, target) != LOSSES[name](score, swapped)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_target_that_would_broadcast_raises(name: str) -> None:
    with pytest.raises((ValueError, TypeCheckError)):
        LOSSES[name](torch.zeros(4), torch.zeros(4, 1))


def test_shape_check_works_without_the_type_checker() -> None:
    unchecked = inspect.unwrap(squared)
    assert unchecked is not squared
    with pytest.raises(ConfigError, match=r"score has shape \(4,\) and target \(4, 1\)"):
        unchecked(torch.zeros(4), torch.zeros(4, 1))


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1 / 1000), (499, 0.5), (999, 1), (1000, 1), (9**9, 1)]
)
def test_warmup_constant(step: int, factor: float) -> None:
    assert warmup_constant(step, warmup=1000, total=10) == factor


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (9, 1), (10, 1), (60, 0.5), (110, 0), (500, 0)]
)
def test_warmup_cosine(step: int, factor: float) -> None:
    assert warmup_cosine(step, warmup=10, total=110, floor=0.0) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (9, 1), (10, 1), (35, 0.8), (110, 0.2), (500, 0.2)]
)
def test_warmup_linear(step: int, factor: float) -> None:
    assert warmup_linear(step, warmup=10, total=110, floor=0.2) == pytest.approx(factor)


def test_warmup_of_0_starts_at_the_full_rate() -> None:
    assert warmup_constant(0, warmup=0, total=10) == 1
    assert warmup_cosine(0, warmup=0, total=10, floor=0.0) == 1
