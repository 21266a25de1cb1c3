"""Ctrl-C in the tests: it arrives, also where the shell that started them ignores it."""

import signal


def restore_ctrl_c() -> None:
    """Install Python's own handler of SIGINT, in this process and so in all that it starts.

    A shell that is not interactive starts the jobs of its background (`pytest &`) with SIGINT
    ignored. Python leaves that as it is and children inherit it; a test that sends the signal would
    then wait for an end that never comes.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
