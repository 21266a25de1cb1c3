"""Ctrl-C and SIGTERM, counted instead of ending the process."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def counted_signals(answer: Callable[[int, int], object] | None = None) -> Iterator[list[int]]:
    """Collect the numbers of Ctrl-C and SIGTERM as they come.

    Signals come to the main thread only; in another one nothing is collected.

    Args:
        answer: called at once with a signal's number and how many came so far.
    """
    received: list[int] = []

    def count(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)
        if answer is not None:
            answer(number, len(received))

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {one: signal.signal(one, count) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
