"""One step of AdamW on flat vectors, with its numbers of many steps taken beforehand."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def adamw(
    parameters: Float[Tensor, " size"],
    exp_avg: Float[Tensor, " size"],
    exp_avg_sq: Float[Tensor, " size"],
    gradient: Float[Tensor, " size"],
    scalars: Float[Tensor, "3"],
    *,
    betas: tuple[float, float],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of torch.optim.AdamW: parameters and moments after it.

    Args:
        parameters: flat.
        exp_avg: first moment.
        exp_avg_sq: second moment.
        gradient: after clipping.
        scalars: a row of `step_scalars`.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.

    Source: Loshchilov and Hutter (2019), arXiv:1711.05101.
    """
    first, second = betas
    exp_avg = exp_avg + (gradient - exp_avg) * (1 - first)
    exp_avg_sq = exp_avg_sq * second + gradient * gradient * (1 - second)
    size, decay, correction = scalars.unbind()
    move = size * (exp_avg / (exp_avg_sq.sqrt() / correction + eps))
    return parameters * decay - move, exp_avg, exp_avg_sq


def step_scalars(
    lr: Float[Tensor, " steps"],
    *,
    first_step: int,
    weight_decay: float,
    betas: tuple[float, float],
) -> Float[Tensor, "steps 3"]:
    """AdamW's numbers of each step, in float64 as torch.optim computes them.

    Args:
        lr: learning rate of each step.
        first_step: optimizer steps done before.
        weight_decay: a step's, times the learning rate.
        betas: AdamW's.

    Returns:
        lr over the first bias correction; the factor of the decay; the root of the second bias
        correction.
    """
    lr = lr.double()
    # torch's powers depend, in the last bit, on the place in the array: on where a call began
    step = np.arange(first_step + 1, first_step + 1 + len(lr), dtype=np.float64)
    first, second = (torch.from_numpy(1 - beta**step) for beta in betas)
    return torch.stack([lr / first, 1 - lr * weight_decay, second.sqrt()], dim=1)
