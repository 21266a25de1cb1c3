"""Bad ticks inserted into bars on purpose."""

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt64

from robust_fin.errors import ConfigError
from robust_fin.market.schema import PRICES, bar_starts

SPIKED_BARS = "bars spiked on purpose by source.spikes"
_GAMMA = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)  # SplitMix64's increment


@dataclass(frozen=True, slots=True)
class Spikes:
    """Random bad ticks: a share of bars has all four prices multiplied by a factor.

    All prices of a bar are multiplied together, so the bar still passes the schema checks and only
    a comparison with its neighbours reveals it. The choice of bars is a hash of time, contract and
    seed: it does not depend on which part of a file is read, or on the block size.

    Attributes:
        share: expected share of bars, in [0, 1).
        factor: multiplier of open, high, low and close; 10 imitates a misplaced decimal point.
        seed: seed of the choice of bars, at least 0.
    """

    share: float
    factor: float
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        valid_seed = isinstance(self.seed, int) and self.seed >= 0
        rules = (
            (0 <= self.share < 1, f"share={self.share} must be in [0, 1)"),
            (0 < self.factor < math.inf, f"factor={self.factor} must be finite and > 0"),
            (valid_seed, f"seed={self.seed} must be an integer >= 0"),
        )
        for holds, message in rules:
            if not holds:
                raise ConfigError(f"source.spikes.{message}; typical values are 0.001, 10.0 and 0")

    def __str__(self) -> str:
        """Describe the spikes for the name of the data."""
        return f"{100 * self.share:g} % of bars spiked {self.factor:g}-fold"

    def mask(self, bars: pd.DataFrame) -> Bool[np.ndarray, " rows"]:
        """Select the bars to spike.

        Args:
            bars: table with time and contract.
        """
        contract = bars["contract"].cat
        codes = np.array([zlib.crc32(str(code).encode()) for code in contract.categories])
        salt = _splitmix64(_splitmix64(np.array([self.seed], np.uint64)) + codes.astype(np.uint64))
        key = bar_starts(bars).view(np.uint64) ^ salt[contract.codes.to_numpy()]
        return (_splitmix64(key) >> np.uint64(11)) * 2.0**-53 < self.share

    def apply(self, bars: pd.DataFrame) -> tuple[pd.DataFrame, int]:
        """Return the bars with spikes, and the number of spiked bars.

        Args:
            bars: validated table; it is not modified.
        """
        mask = self.mask(bars)
        scale = np.where(mask, self.factor, 1.0)
        spiked: dict[str, Any] = {name: bars[name] * scale for name in PRICES}
        return bars.assign(**spiked), int(mask.sum())


def _splitmix64(key: UInt64[np.ndarray, " keys"]) -> UInt64[np.ndarray, " keys"]:
    """Hash 64-bit keys.

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.
    """
    key = key + _GAMMA
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
