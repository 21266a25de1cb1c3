"""Bars damaged on purpose, to see what a run does with them: a stress test, never a feature."""

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt64

from robust_fin.errors import ConfigError
from robust_fin.market.schema import PRICES, stamps

SPIKED = "bars spiked on purpose by source.spikes"
_ODD = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)  # of the golden ratio


@dataclass(frozen=True, slots=True)
class Spikes:
    """A share of bars has all four prices multiplied, as by a misplaced decimal point.

    The prices of a bar move together, so that it keeps every rule of a bar table, and only a
    comparison with its neighbours can tell. Which bars are hit follows from their time, contract
    and the seed alone: reading another part of a file, or reading it in blocks, hits the same ones.

    Attributes:
        share: of bars, in expectation, in [0, 1).
        factor: of open, high, low and close; 10 is tenfold.
        seed: of the choice of bars, at least 0.
    """

    share: float
    factor: float
    seed: int

    def __post_init__(self) -> None:
        """Refuse what would not leave bars behind."""
        rules = (
            (0 <= self.share < 1, f"share={self.share} is not in [0, 1)"),
            (0 < self.factor < math.inf, f"factor={self.factor} is not above 0 and finite"),
            (isinstance(self.seed, int) and self.seed >= 0, f"seed={self.seed} is no count"),
        )
        for holds, words in rules:
            if not holds:
                raise ConfigError(f"source.spikes.{words}; the usual ones are 0.001, 10.0 and 0")

    def __str__(self) -> str:
        """For the name of the data."""
        return f"{100 * self.share:g} % of bars spiked {self.factor:g}-fold"

    def hits(self, bars: pd.DataFrame) -> Bool[np.ndarray, " rows"]:
        """Which bars are spiked.

        Args:
            bars: with time and contract.
        """
        contract = bars["contract"].cat
        names = np.array([zlib.crc32(str(one).encode()) for one in contract.categories])
        mixed = _mixed(_mixed(np.array([self.seed], dtype=np.uint64)) + names.astype(np.uint64))
        key = stamps(bars).view(np.uint64) ^ mixed[contract.codes.to_numpy()]
        return (_mixed(key) >> np.uint64(11)) * 2.0**-53 < self.share

    def applied(self, bars: pd.DataFrame) -> tuple[pd.DataFrame, int]:
        """The bars with spikes, and how many were hit.

        Args:
            bars: validated; left as they are.
        """
        hit = self.hits(bars)
        scale = np.where(hit, self.factor, 1.0)
        spiked: dict[str, Any] = {name: bars[name] * scale for name in PRICES}
        return bars.assign(**spiked), int(hit.sum())


def _mixed(key: UInt64[np.ndarray, " rows"]) -> UInt64[np.ndarray, " rows"]:
    """Sixty-four bits that follow from 64 bits and look like chance.

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, SplitMix.
    """
    key = key + _ODD
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
