"""Checkpoints, exact resume, and the handling of non-finite steps."""
