"""Training objectives and learning-rate schedules, as pure functions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from robust_fin.errors import ConfigError


def huber(
    score: Float[Tensor, " batch"],
    target: Float[Tensor, " batch"],
    *,
    delta: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Mean Huber loss: 0.5 e^2 up to `delta`, in rank units, then delta (|e| - 0.5 delta).

    `delta` may be a tensor, so that one compiled step serves members with different ones.
    """
    check_same_shape(score, target)
    if not isinstance(delta, Tensor):
        return F.huber_loss(score, target, delta=delta)
    size = (score - target).abs()
    return torch.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta)).mean()


def squared(score: Float[Tensor, " batch"], target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean squared error."""
    check_same_shape(score, target)
    return F.mse_loss(score, target)


def absolute(score: Float[Tensor, " batch"], target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean absolute error."""
    check_same_shape(score, target)
    return F.l1_loss(score, target)


def check_same_shape(score: Tensor, target: Tensor) -> None:
    """Refuse what would broadcast.

    Raises:
        ConfigError: the shapes differ.
    """
    if score.shape != target.shape:
        shapes: tuple[torch.Size, torch.Size] = (score.shape, target.shape)
        raise ConfigError(
            f"score has the shape {tuple(shapes[0])} and target {tuple(shapes[1])}; they would "
            "broadcast. A net must return one score a row, shape (batch,)"
        )


def warmup_constant(step: int, *, warmup: int, total: int) -> float:  # noqa: ARG001
    """Stay at 1 after the warmup."""
    return _rise(step, warmup) if step < warmup else 1.0


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Follow half a cosine from 1 to `floor` at step `total`.

    Source: Loshchilov and Hutter (2017), arXiv:1608.03983.
    """
    if step < warmup:
        return _rise(step, warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total)))


def warmup_linear(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Fall in a straight line from 1 to `floor` at step `total`."""
    if step < warmup:
        return _rise(step, warmup)
    return 1 - (1 - floor) * _progress(step, warmup, total)


def check_warmup(warmup: object) -> None:
    """Refuse a warmup that is no count of steps.

    Raises:
        ConfigError: it is below 0 or not whole.
    """
    if not isinstance(warmup, int) or warmup < 0:
        raise ConfigError(f"schedule.warmup={warmup} must be a whole number of steps, at least 0")


def _rise(step: int, warmup: int) -> float:
    return (step + 1) / warmup


def _progress(step: int, warmup: int, total: int) -> float:
    return min(1.0, (step - warmup) / max(1, total - warmup))
