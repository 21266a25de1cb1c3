"""Learning-rate schedules: pure functions of the optimizer step, counted from 0.

Each rises linearly to 1 over `warmup` steps, exactly (step + 1) / warmup, and then goes its way
until `total`, the number of steps planned. The factor multiplies the optimizer's learning rate.
"""

import math

from robust_fin.errors import ConfigError


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
