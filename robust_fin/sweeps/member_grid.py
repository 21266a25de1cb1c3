"""Combinations and points of settings, as they are written on a command line."""

import itertools
import math
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.types import Override
from scipy.stats import qmc

from robust_fin.errors import ConfigError
from robust_fin.sweeps.search_space import Between, Space, Values, text_of

Settings = dict[str, str]  # values by key, both as they are written
# keys of a single run, and the lists of a population that say the same of its members
MEMBER_KEYS: Mapping[str, str] = {
    "optimizer.lr": "lr",
    "optimizer.weight_decay": "weight_decay",
    "loss.delta": "delta",
    "model.dropout": "dropout",
    "seed": "seeds",
}


def combinations(words: Sequence[Override]) -> list[Settings]:
    """Every combination of what is swept, the last key changing fastest; one of none is empty.

    Raises:
        ConfigError: an interval, which has no end of values.
    """
    for word in words:
        if word.is_interval_sweep():
            raise ConfigError(
                f"{word.input_line} has no end of values; give a list or a range, or a number of "
                "points with sweep.trials"
            )
    keys = [word.get_key_element() for word in words]
    lists = [list(word.sweep_string_iterator()) for word in words]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*lists)]


def points(space: Space, count: int, *, seed: int) -> list[Settings]:
    """Points spread over a space: a scrambled Sobol sequence.

    Args:
        space: keys and their values.
        count: of points; the sequence is most even for powers of two.
        seed: of the scrambling.
    """
    if not space:
        return []
    drawn = qmc.Sobol(len(space), seed=seed).random_base2(math.ceil(math.log2(count)))[:count]
    return [
        {key: _at(values, float(u)) for (key, values), u in zip(space.items(), row, strict=True)}
        for row in drawn
    ]


def _at(values: Values, u: float) -> str:
    """The value at a place in [0, 1)."""
    if not isinstance(values, Between):
        return values.choices[int(u * len(values.choices))]
    low, high = values.low, values.high
    step = 1 if values.whole and values.step is None else values.step
    if values.log:
        found = low * (high / low) ** u
        return text_of(round(found) if values.whole else found)
    if step is None:
        return text_of(low + u * (high - low))
    steps = int(u * (math.floor((high - low) / step + 1e-9) + 1))
    found = low + steps * step
    return text_of(round(found) if values.whole else round(found, 12))
