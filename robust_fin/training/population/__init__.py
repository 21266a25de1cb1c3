"""Populations: many members (seeds, folds, settings) in one run."""
