"""Causal functions of bars.

The timing rule, stated once: the value at row t uses bars up to and including t; the target starts
where bar t ends. No feature shifts anything "to be safe".
"""

from robust_fin.features import (
    clock,
    context,
    location,
    price,
    profile,
    returns,
    same_minute,
    session,
    volatility,
    volume,
)

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
