"""A process without a network: every connection to another machine is refused.

A test writes `SITECUSTOMIZE` into a folder of PYTHONPATH; Python then runs it at the start of every
process, before any other code.
"""

import sys

SITECUSTOMIZE = "from tests.docs.offline import refuse_other_machines; refuse_other_machines()\n"
LOCAL = ("127.0.0.1", "::1", "localhost", "", None)
# the audit events whose arguments name a machine: place of the address, and whether it is a tuple
EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0}


def refuse_other_machines() -> None:
    """Make every connection of this process to another machine an OSError, until it ends."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event not in EVENTS:
        return
    address = arguments[EVENTS[event]]
    if isinstance(address, tuple):  # a path is a Unix socket, on this machine
        host = address[0]
    else:
        host = address if event == "socket.getaddrinfo" else None
    if isinstance(host, bytes):
        host = host.decode()
    if host not in LOCAL:
        raise OSError(f"this process runs without a network, and asks for {address}")
