"""Nets: (batch, features) -> one raw score a row. Nothing here imports anything else of ours."""
