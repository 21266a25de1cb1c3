"""Many jobs from one command: which settings, in which processes, and the table of what came out.

A strategy says what is tried next; everything else (folders, processes, the table, going on after
an interruption) is the same for all of them.
"""
