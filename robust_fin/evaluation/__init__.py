"""Evaluation of a run from its predictions table; nothing here sees a model."""
