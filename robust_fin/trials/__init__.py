"""The trial ledger: every training run of a project is a line of one file, and so is every look.

Whoever makes twenty runs and shows the best one shows mostly luck. The ledger counts them, so that
what is claimed of one can be deflated by all.
"""
