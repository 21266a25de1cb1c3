"""Future-perturbation checks behind the command `leakcheck`."""
