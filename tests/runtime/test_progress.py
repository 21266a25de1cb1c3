"""What a terminal shows of a long step, and that nothing else gets any of it."""

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from robust_fin.runtime.terminal import (
    hide_progress,
    progress_bar,
    progress_is_shown,
    progress_seconds,
)
from tests.conftest import ROOT

SCRIPT = """
import sys, time
from robust_fin.runtime.terminal import progress_bar, progress_seconds
with progress_bar("features", total=4) as advance:
    for _ in range(4):
        time.sleep(0.06)
        advance(1)
with progress_seconds("compiling, once", usual=9.0):
    time.sleep(0.15)
sys.stdout.write("done")
"""


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80)


def written(one: Console) -> str:
    assert isinstance(one.file, io.StringIO)
    return one.file.getvalue()


def test_a_terminal_sees_how_far_and_how_long_yet() -> None:
    out = console(terminal=True)
    with progress_bar("features", total=8, console=out) as advance:
        for _ in range(6):
            advance(1)
            time.sleep(0.05)
    assert "features" in written(out)
    assert "75%" in written(out)
    assert re.search(r"0:00:0\d.{0,5} left", written(out))


@pytest.mark.parametrize(
    ("usual", "said"), [(9.0, "0 s, about 9 s left"), (0.02, "0 s, usually takes 0 s")]
)
def test_what_cannot_say_how_far_it_is_goes_by_what_it_usually_takes(
    usual: float, said: str
) -> None:
    out = console(terminal=True)
    with progress_seconds("compiling, once", usual=usual, console=out):
        time.sleep(0.15)
    assert f"compiling, once: {said}" in written(out)


def test_what_is_no_terminal_or_wants_silence_gets_nothing() -> None:
    out = console(terminal=False)
    with progress_seconds("compiling, once", usual=9.0, console=out):
        assert not progress_is_shown(out)
    assert written(out) == ""
    out = console(terminal=True)
    with hide_progress(), progress_seconds("compiling, once", usual=9.0, console=out):
        assert not progress_is_shown(out)
    assert written(out).strip() == ""
    with hide_progress(when=False):
        assert progress_is_shown(out)


def test_a_step_within_a_step_shows_no_second_line() -> None:
    out = console(terminal=True)
    with (
        progress_bar("outer", total=1, console=out),
        progress_seconds("inner", usual=1.0, console=out),
    ):
        time.sleep(0.15)
    assert "outer" in written(out)
    assert "inner" not in written(out)


def test_silence_ends_with_the_last_who_asked_for_it() -> None:
    one, other = hide_progress(), hide_progress()
    out = console(terminal=True)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not progress_is_shown(out)
    other.__exit__(None, None, None)
    assert progress_is_shown(out)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")
def test_a_real_terminal_and_a_pipe(tmp_path: Path) -> None:
    import pty

    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, str(tmp_path / "script.py")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "TERM": "xterm"}
    piped = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("done", "")
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=theirs) as done:
        os.close(theirs)
        seen = everything(ours)
        assert done.stdout is not None
        assert done.stdout.read() == b"done"
    os.close(ours)
    assert done.returncode == 0
    assert "features" in seen
    assert "compiling, once: 0 s, about 9 s left" in seen
    assert "\x1b[" in seen


def everything(terminal: int) -> str:
    """What is written until the last writer is gone, which Linux says with an error."""
    parts = []
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 1 << 12):
            parts.append(part)
    return b"".join(parts).decode()
