"""Sweeps: many runs from one command, their processes, and the table of their results.

A strategy chooses the settings of the next trial and an executor runs its job. Folders, the table
and resuming are the same for all strategies and executors.
"""
