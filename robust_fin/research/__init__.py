"""What the verbs do, as functions: for notebooks, and for scripts of one's own.

Words are overrides as on the command line. Nothing is printed, and the process is left as it was.
"""
