"""The process that a run borrows: what it changes in it for everybody is put back."""

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch

_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "OMP_NUM_THREADS")
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "robust_fin")


@contextlib.contextmanager
def borrowed_process() -> Iterator[None]:
    """Give threads, random states, warnings, log levels and environment back as they were.

    A run of the command line owns its process. One that is started from a notebook does not, and
    the cells after it must draw the numbers they would have drawn without it.
    """
    threads, states = torch.get_num_threads(), _random_states()
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_num_threads(threads)
        _restore(states)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _random_states() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore(states: tuple[object, ...]) -> None:
    python, numpy, torch_state = states
    random.setstate(python)  # type: ignore[arg-type]
    np.random.set_state(numpy)  # type: ignore[arg-type]
    assert isinstance(torch_state, torch.Tensor)
    torch.set_rng_state(torch_state)
