"""Tests of progress display and verbosity; output to a pipe has no control characters."""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from robust_fin import evaluate, predict, train
from robust_fin.bundle.config import read_config
from robust_fin.errors import ConfigError
from robust_fin.ledger.trials import config_hash
from robust_fin.runs.run import Run
from robust_fin.runs.schema import get_verbosity, plain_values
from robust_fin.runtime.terminal import (
    DETAILED,
    NORMAL,
    QUIET,
    hide_progress,
    progress_bar,
    progress_is_shown,
    progress_seconds,
    show,
    verbosity,
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


def test_terminal_shows_progress_and_remaining_time() -> None:
    out = console(terminal=True)
    with progress_bar("features", total=8, console=out) as advance:
        for _ in range(6):
            advance(1)
            time.sleep(0.05)
    assert "features" in written(out)
    assert "75%" in written(out)
    assert re.search(r"0:00:0\d.{0,5} left", written(out))


@pytest.mark.parametrize(
    ("usual", "expected"), [(9.0, "0 s, about 9 s left"), (0.02, "0 s, usually takes 0 s")]
)
def test_step_without_a_total_shows_its_usual_duration(usual: float, expected: str) -> None:
    out = console(terminal=True)
    with progress_seconds("compiling, once", usual=usual, console=out):
        time.sleep(0.15)
    assert f"compiling, once: {expected}" in written(out)


def test_no_progress_without_a_terminal_or_when_hidden() -> None:
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


def test_nested_step_shows_no_second_line() -> None:
    out = console(terminal=True)
    with (
        progress_bar("outer", total=1, console=out),
        progress_seconds("inner", usual=1.0, console=out),
    ):
        time.sleep(0.15)
    assert "outer" in written(out)
    assert "inner" not in written(out)


def test_progress_stays_hidden_until_the_last_context_exits() -> None:
    one, other = hide_progress(), hide_progress()
    out = console(terminal=True)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not progress_is_shown(out)
    other.__exit__(None, None, None)
    assert progress_is_shown(out)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")
def test_pseudoterminal_shows_progress_and_pipe_does_not(tmp_path: Path) -> None:
    import pty

    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "TERM": "xterm"}
    piped = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("done", "")
    parent, child = pty.openpty()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=child) as done:
        os.close(child)
        seen = read_all(parent)
        assert done.stdout is not None
        assert done.stdout.read() == b"done"
    os.close(parent)
    assert done.returncode == 0
    assert "features" in seen
    assert "compiling, once: 0 s, about 9 s left" in seen
    assert "\x1b[" in seen


def read_all(terminal: int) -> str:
    """Read until the last writer has closed, which Linux reports as an OSError."""
    parts = []
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 1 << 12):
            parts.append(part)
    return b"".join(parts).decode()


OVERRIDES = ("source.synthetic.rows=3000", "features=study", "trainer.max_epochs=1",
         "split.refit=false", "cache.folder=null", "report.pictures=false")  # fmt: skip
Capture = pytest.CaptureFixture[str]


def train_output(folder: Path, capfd: Capture, *overrides: str) -> tuple[str, str]:
    capfd.readouterr()
    assert train.main(["+experiment=smoke", f"hydra.run.dir={folder}", *OVERRIDES, *overrides]) == 0
    captured = capfd.readouterr()
    return captured.out, captured.err


def test_pipe_gets_one_table_three_paths_and_no_control_characters(
    tmp_path: Path, capfd: Capture
) -> None:
    out, err = train_output(tmp_path / "run", capfd)
    run = Run(tmp_path / "run")
    assert err == ""
    assert "\x1b" not in out
    assert "\r" not in out
    assert out.count("skill over the constant") == 1
    assert "Net on test" not in out
    assert out.splitlines()[-4:] == [
        f"report       {run.folder}/report.html",
        f"TensorBoard  tensorboard --logdir {run.folder}",
        f"bundle       {run.folder}/bundle",
        run.verdict,
    ]
    assert all(Path(line.split()[-1]).exists() for line in out.splitlines()[-4:-1])


def test_quiet_prints_only_the_verdict_and_does_not_change_the_run(
    tmp_path: Path, capfd: Capture
) -> None:
    folders = [tmp_path / "quiet", tmp_path / "detailed"]
    assert train_output(folders[0], capfd, "verbose=0") == (f"{Run(folders[0]).verdict}\n", "")
    out, _ = train_output(folders[1], capfd, "verbose=2")
    assert "Net on test" in out  # the caption of a detailed table
    assert out.count("95 % intervals") >= 2  # the tables that the summary stands for
    quiet, detailed = (read_config(one) for one in folders)
    assert (quiet.verbose, detailed.verbose) == (0, 2)
    assert config_hash(plain_values(quiet)) == config_hash(plain_values(detailed))
    skills = [Run(one).metrics["test/skill"] for one in folders]
    assert skills[0] == skills[1]
    capfd.readouterr()
    assert evaluate.main([f"run={folders[0]}", "verbose=0"]) == 0
    assert capfd.readouterr() == (f"{Run(folders[0]).verdict}\n", "")
    scores = tmp_path / "scores.parquet"
    command = [f"run={folders[0]}", f"out={scores}", "source.synthetic.rows=50", "verbose=0"]
    assert predict.main(command) == 0
    assert capfd.readouterr().out.endswith(f"without an outcome yet: {scores}\n")


@pytest.mark.parametrize(
    ("verbose", "printed"), [(QUIET, "verdict\n"), (NORMAL, "table\nverdict\n")]
)
def test_verbosity_selects_what_is_printed(verbose: int, printed: str, capfd: Capture) -> None:
    from robust_fin.runtime.terminal import DETAILS, NOTHING, RESULT, console_level

    with verbosity(verbose):
        show("details", level=DETAILS)
        show("table")
        show("verdict", level=RESULT)
        assert progress_is_shown(console(terminal=True)) is (verbose != QUIET)
    with console_level(NOTHING), verbosity(DETAILED):
        show("verdict", level=RESULT)
    assert capfd.readouterr().out == printed


def test_log_levels_are_restored() -> None:
    ours = logging.getLogger("robust_fin")
    before = ours.level
    with verbosity(DETAILED):
        assert ours.level == logging.DEBUG
    assert ours.level == before


def test_invalid_verbosity_raises() -> None:
    assert get_verbosity(OmegaConf.create({})) == NORMAL  # runs from before this key existed
    with pytest.raises(ConfigError, match=r"verbose=3 must be 0 \(errors and the verdict\)"):
        get_verbosity(OmegaConf.create({"verbose": 3}))
