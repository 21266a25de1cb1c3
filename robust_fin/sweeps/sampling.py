"""What a study takes its values from: the sampler, and the space in Optuna's terms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate

from robust_fin.sweeps.search_space import Between, Values, text_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a study chooses what is tried, and what is ended early.

    Attributes:
        sampler: as in YAML, without its seed.
        seed: of the sampler.
        pruner: as in YAML; None ends nothing.
    """

    sampler: Mapping[str, Any]
    seed: int
    pruner: dict[str, Any] | None

    def check(self) -> None:
        """Build both once, so that a wrong setting ends the search and not every job."""
        self.seeded(0)
        if self.pruner is not None:
            instantiate(self.pruner)

    def seeded(self, number: int) -> "BaseSampler":
        """The sampler of a trial, whose draws depend on seed and number, however often resumed.

        Several commands on one study would else try the same values.
        """
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1)
        found: BaseSampler = instantiate(self.sampler, seed=int(seed[0]))
        return found


def distribution_of(values: Values) -> "BaseDistribution":
    """Values of a key as Optuna knows them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Between):
        return CategoricalDistribution(values.choices)
    low, high, log = values.low, values.high, values.log
    if values.whole:
        return IntDistribution(int(low), int(high), log=log, step=int(values.step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=values.step)


def suggested(trial: "Trial", key: str, values: "BaseDistribution") -> object:
    """What the sampler takes for a key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, CategoricalDistribution):
        return trial.suggest_categorical(key, values.choices)
    if isinstance(values, IntDistribution):
        return trial.suggest_int(key, values.low, values.high, step=values.step, log=values.log)
    assert isinstance(values, FloatDistribution)
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)


def word_of(value: object) -> str:
    """A value of a trial as it is written on a command line; a choice is text already."""
    return value if isinstance(value, str) else text_of(value)
