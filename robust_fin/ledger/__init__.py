"""The trial ledger and the lockbox: every training run and every look is counted."""
