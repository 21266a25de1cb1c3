"""Training losses and learning-rate schedules, as pure functions."""

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
    """Return the mean Huber loss: 0.5 e^2 up to `delta`, then delta (|e| - 0.5 delta).

    `delta` is in rank units. It may be a tensor, so that one compiled step serves the members of a
    population with different deltas.
    """
    check_same_shape(score, target)
    if not isinstance(delta, Tensor):
        return F.huber_loss(score, target, delta=delta)
    size = (score - target).abs()
    return torch.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta)).mean()


def squared(score: Float[Tensor, " batch"], target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Return the mean squared error."""
    check_same_shape(score, target)
    return F.mse_loss(score, target)


def absolute(score: Float[Tensor, " batch"], target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Return the mean absolute error."""
    check_same_shape(score, target)
    return F.l1_loss(score, target)


def check_same_shape(score: Tensor, target: Tensor) -> None:
    """Raise ConfigError if the shapes differ, so that nothing broadcasts."""
    if score.shape != target.shape:
        shapes: tuple[torch.Size, torch.Size] = (score.shape, target.shape)
        raise ConfigError(
            f"score has shape {tuple(shapes[0])} and target {tuple(shapes[1])}; they would "
            "broadcast. A net must return one score per row, shape (batch,)"
        )


def warmup_constant(step: int, *, warmup: int, total: int) -> float:  # noqa: ARG001
    """Rise linearly to 1 over `warmup` steps, then stay at 1."""
    return (step + 1) / warmup if step < warmup else 1.0


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Rise linearly to 1 over `warmup` steps, then follow half a cosine to `floor` at `total`.

    Source: Loshchilov and Hutter (2017), arXiv:1608.03983.
    """
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total)))


def warmup_linear(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Rise linearly to 1 over `warmup` steps, then fall linearly to `floor` at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (1 - floor) * _progress(step, warmup, total)


def check_warmup(warmup: object) -> None:
    """Raise ConfigError unless `warmup` is a non-negative integer."""
    if not isinstance(warmup, int) or warmup < 0:
        raise ConfigError(f"schedule.warmup={warmup} must be an integer >= 0 (optimizer steps)")


def _progress(step: int, warmup: int, total: int) -> float:
    return min(1.0, (step - warmup) / max(1, total - warmup))
