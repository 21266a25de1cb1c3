"""The trial ledger: every training run of a project is a line of one file, and so is every look.

Whoever makes twenty runs and shows the best one shows mostly luck. The ledger counts them, so that
what is claimed of one can be deflated by all.
"""

from robust_fin.trials.entries import Look, Trial, config_hash
from robust_fin.trials.ledger import Trials, append
from robust_fin.trials.record import daily_of, deflated_words, ledger_of, placed, record_trial

__all__ = [
    "Look",
    "Trial",
    "Trials",
    "append",
    "config_hash",
    "daily_of",
    "deflated_words",
    "ledger_of",
    "placed",
    "record_trial",
]
