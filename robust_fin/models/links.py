"""Links: raw score -> forecast. Applied once, after the net, in training and prediction alike."""

import torch
from jaxtyping import Float
from torch import Tensor


def identity(score: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The raw score is the forecast."""
    return score


def sigmoid(score: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The raw score is the logit of the forecast, which then lies in (0, 1)."""
    return torch.sigmoid(score)
