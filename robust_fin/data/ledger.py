"""The row ledger: every input row is kept in a span or dropped for one named reason."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool


@dataclass(frozen=True, slots=True)
class RowLedger:
    """Where the rows of a file went.

    Attributes:
        rows_in: rows of the file.
        dropped: rows left out, by reason.
        spans: rows kept, by span (train, val, test).
        reports: what was noticed and not changed, by name.
    """

    rows_in: int
    dropped: Mapping[str, int]
    spans: Mapping[str, int]
    reports: Mapping[str, float]

    def __post_init__(self) -> None:
        """A ledger that does not add up is our mistake, never the user's."""
        total = sum(self.dropped.values()) + sum(self.spans.values())
        assert total == self.rows_in, f"{total} rows accounted for, {self.rows_in} came in"

    def as_dict(self) -> dict[str, object]:
        """What rows.json holds."""
        return {
            "rows_in": self.rows_in,
            "dropped": dict(self.dropped),
            "spans": dict(self.spans),
            "reports": dict(self.reports),
        }


def first_reasons(reasons: Mapping[str, Bool[np.ndarray, " rows"]]) -> dict[str, int]:
    """Rows dropped by reason; a row with several reasons counts under the first of them."""
    counts: dict[str, int] = {}
    taken: np.ndarray | None = None
    for reason, mask in reasons.items():
        fresh = mask if taken is None else mask & ~taken
        taken = mask if taken is None else taken | mask
        if fresh.any():
            counts[reason] = int(fresh.sum())
    return counts
