"""Leak checks: perturb the bars and compare features, labels and folds."""
