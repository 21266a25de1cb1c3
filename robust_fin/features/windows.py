"""Trailing windows whose value depends on what lies inside them alone, to the last bit.

A running sum would carry the rounding of all that came before it; here a window is put together
from the halves of halves, which costs log2(span) passes instead of span.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, "rows *rest"]


def lagged(values: Values, count: int) -> Values:
    """The values `count` rows earlier, along the first axis; NaN where there are none.

    >>> lagged(np.array([1.0, 2.0, 3.0]), 2)
    array([nan, nan,  1.])
    """
    moved = np.full_like(values, np.nan)
    moved[count:] = values[: max(0, len(values) - count)]
    return moved


def trailing_sum(values: Values, span: int) -> Values:
    """Sum of the last `span` rows, the present one included; NaN where there are fewer.

    >>> trailing_sum(np.array([1.0, 2.0, 3.0, 4.0]), 3)
    array([nan, nan,  6.,  9.])
    """
    doubled, width, total, reach = values, 1, None, 0
    while True:
        if span & width:
            part = lagged(doubled, reach)
            total = part if total is None else total + part
            reach += width
        if reach == span:
            assert total is not None, f"a window of {span} rows"
            return total
        doubled = doubled + lagged(doubled, width)
        width *= 2


def trailing_mean(values: Values, span: int) -> Values:
    """Mean of the last `span` rows, the present one included; NaN where there are fewer."""
    return trailing_sum(values, span) / span


def trailing_max(values: Values, span: int) -> Values:
    """Largest of the last `span` rows, the present one included; NaN where there are fewer."""
    return _trailing_extreme(values, span, np.maximum)


def trailing_min(values: Values, span: int) -> Values:
    """Smallest of the last `span` rows, the present one included; NaN where there are fewer."""
    return _trailing_extreme(values, span, np.minimum)


def _trailing_extreme(
    values: Values, span: int, larger: Callable[[Values, Values], Values]
) -> Values:
    widest, width = values, 1
    while 2 * width <= span:
        widest = larger(widest, lagged(widest, width))
        width *= 2
    return larger(widest, lagged(widest, span - width))  # the two may overlap: no harm
