"""Feature ranking behind the command `select`."""
