"""Causal functions of bars.

Timing rule: the value at row t uses bars up to and including t; the target starts where bar t ends.
So no feature needs a `shift(1)` to be safe.
"""

from robust_fin.features import prices, session

__all__ = ["prices", "session"]
