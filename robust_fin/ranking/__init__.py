"""Feature ranking for the command `select`."""
