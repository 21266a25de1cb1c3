"""Run processes offline: connections to other hosts raise OSError.

A test writes `SITECUSTOMIZE` into a folder of PYTHONPATH; Python runs it at the start of every
process, before any other code.
"""

import sys

SITECUSTOMIZE = "from tests.docs.offline import refuse_other_machines; refuse_other_machines()\n"
LOCAL = ("127.0.0.1", "::1", "localhost", "", None)
# audit events with an address, and the index of the address in their arguments
EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0}


def refuse_other_machines() -> None:
    """Raise OSError for every connection of this process to another host."""
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
