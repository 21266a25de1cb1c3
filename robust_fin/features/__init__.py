"""Causal functions of bars.

The timing rule, stated once: the value at row t uses bars up to and including t; the target starts
where bar t ends. No feature shifts anything "to be safe".
"""

from robust_fin.features import prices as location
from robust_fin.features import prices as price
from robust_fin.features import prices as returns
from robust_fin.features import prices as volatility
from robust_fin.features import session
from robust_fin.features import session as clock
from robust_fin.features import session as context
from robust_fin.features import session as profile
from robust_fin.features import session as same_minute
from robust_fin.features import session as volume

__all__ = [
    "clock",
    "context",
    "location",
    "price",
    "profile",
    "returns",
    "same_minute",
    "session",
    "volatility",
    "volume",
]
