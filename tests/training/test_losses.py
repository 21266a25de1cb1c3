import pytest
import torch
from jaxtyping import TypeCheckError

from robust_fin.training.losses import absolute, huber, squared

LOSSES = {"huber": lambda s, t: huber(s, t, delta=0.1), "squared": squared, "absolute": absolute}


def test_closed_forms() -> None:
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
def test_a_target_that_would_broadcast_is_refused(name: str) -> None:
    with pytest.raises((ValueError, TypeCheckError)):
        LOSSES[name](torch.zeros(4), torch.zeros(4, 1))


def test_the_refusal_does_not_need_the_type_checker() -> None:
    unchecked = getattr(squared, "__wrapped__", squared)
    with pytest.raises((ValueError, TypeCheckError), match=r"\(4,\)|target"):
        unchecked(torch.zeros(4), torch.zeros(4, 1))
