"""Objectives: what training minimises. Pure functions of (score, target), both one entry a row.

The shapes are checked on every call, because a (batch, 1) target against a (batch,) score would
broadcast to (batch, batch) and train on nonsense.
"""

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
    require_same_shape(score, target)
    if not isinstance(delta, Tensor):
        return F.huber_loss(score, target, delta=delta)
    size = (score - target).abs()
    return torch.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta)).mean()


def squared(score: Float[Tensor, " batch"], target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean squared error."""
    require_same_shape(score, target)
    return F.mse_loss(score, target)


def absolute(score: Float[Tensor, " batch"], target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean absolute error."""
    require_same_shape(score, target)
    return F.l1_loss(score, target)


def require_same_shape(score: Tensor, target: Tensor) -> None:
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
