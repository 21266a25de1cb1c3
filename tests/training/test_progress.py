"""What a terminal shows while something is compiled."""

import io
import time

from rich.console import Console

from robust_fin.training.progress import shown_seconds


def written(*, terminal: bool, show: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80)
    with shown_seconds("compiling, once", show=show, console=console):
        time.sleep(0.15)
    return out.getvalue()


def test_a_terminal_counts_the_seconds_of_a_compilation() -> None:
    assert "compiling, once: 0 s" in written(terminal=True, show=True)


def test_nothing_is_written_where_no_terminal_looks_on_or_bars_are_off() -> None:
    assert written(terminal=False, show=True).strip() == ""
    assert written(terminal=True, show=False).strip() == ""
