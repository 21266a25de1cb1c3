"""sweep=grid: every combination of the values that are listed."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override

from robust_fin.errors import ConfigError
from robust_fin.sweeps.trial import STOPPED, Outcome, Row, Trial, one_row


class Grid:
    """Goes through all combinations in the order in which they are written, the last key fastest.

    Args:
        workers: jobs that run at a time.
    """

    def __init__(self, *, workers: int) -> None:
        """Nothing planned yet."""
        self.workers = workers
        self._left: list[Trial] = []

    def plan(
        self,
        words: Sequence[Override],
        *,
        folder: Path,
        done: Mapping[int, Outcome],
    ) -> int:
        """See `Strategy.plan`."""
        every = [
            Trial(number, overrides)
            for number, overrides in enumerate(itertools.product(*map(_values, words)))
        ]
        for number, one in done.items():
            if number >= len(every) or one.trial.overrides != every[number].overrides:
                raise ConfigError(
                    f"job {number} of {folder} was made with {' '.join(one.trial.overrides)}, and "
                    "the grid has another there now. Start another sweep in another folder"
                )
        over = {number for number, one in done.items() if one.state != STOPPED}
        self._left = [trial for trial in every if trial.number not in over]
        return len(every)

    def ask(self) -> Trial | None:
        """See `Strategy.ask`."""
        return self._left.pop(0) if self._left else None

    def tell(self, outcome: Outcome) -> None:
        """See `Strategy.tell`; a grid learns nothing."""

    def rows(self, outcome: Outcome) -> Sequence[Row]:
        """See `Strategy.rows`."""
        return one_row(outcome)

    def default_job(self) -> int | None:
        """None: what is listed need not hold the settings as they are."""
        return None


def _values(word: Override) -> list[str]:
    """The word once a value of its key.

    Raises:
        ConfigError: an interval, which has no list of values.
    """
    if not word.is_sweep_override():
        return [str(word.input_line)]
    if not word.is_discrete_sweep():
        raise ConfigError(
            f"{word.input_line} is an interval, of which a grid cannot try every value; write a "
            "list (0.001,0.01) or range(0,1,step=0.1), or search it with sweep=optuna"
        )
    return [f"{word.get_key_element()}={value}" for value in word.sweep_string_iterator()]
