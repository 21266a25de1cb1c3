"""Trial ledger and lockbox: every training run and every look at the lockbox is counted."""
