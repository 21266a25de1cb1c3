"""How much a run says: `verbose`, for tables, progress, logs and warnings alike."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from robust_fin.errors import ConfigError
from robust_fin.show import DETAILS, RESULT, USUAL, talking
from robust_fin.progress import hidden

QUIET, NORMAL, DETAILED = 0, 1, 2
_LOUDNESS = {QUIET: RESULT, NORMAL: USUAL, DETAILED: DETAILS}
_OURS = "robust_fin"


@contextlib.contextmanager
def saying(verbosity: int) -> Iterator[None]:
    """Say so much and no more, and leave loggers and warnings as they were.

    Args:
        verbosity: QUIET, NORMAL or DETAILED.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(talking(_LOUDNESS[verbosity]))
        stack.enter_context(hidden(when=verbosity == QUIET))
        if verbosity == DETAILED:
            stack.enter_context(_level(logging.getLogger(_OURS), logging.DEBUG))
        if verbosity == QUIET:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            for handler in logging.getLogger().handlers:
                if not isinstance(handler, logging.FileHandler):
                    stack.enter_context(_level(handler, logging.ERROR))
        yield


@contextlib.contextmanager
def _level(one: logging.Logger | logging.Handler, level: int) -> Iterator[None]:
    before = one.level
    one.setLevel(level)
    try:
        yield
    finally:
        one.setLevel(before)
