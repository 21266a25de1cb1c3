"""The compiled engine: many optimizer steps in one call."""
