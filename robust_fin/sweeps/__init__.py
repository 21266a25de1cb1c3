"""Many jobs from one command: which settings, in which processes, and the table of what came out.

A strategy says what is tried next; everything else (folders, processes, the table, going on after
an interruption) is the same for all of them.
"""

from robust_fin.sweeps.strategy import Strategy
from robust_fin.sweeps.trial import FAILED, FINISHED, PRUNED, STOPPED, Outcome, Row, Trial, one_row

__all__ = [
    "FAILED",
    "FINISHED",
    "PRUNED",
    "STOPPED",
    "Outcome",
    "Row",
    "Strategy",
    "Trial",
    "one_row",
]
