"""Where SIGINT is ignored, the tests restore it."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
CHILD = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('deaf', flush=True)"


def said_by_child(*, restored: bool) -> str:
    """Output of a process that sends SIGINT to itself, where its parents ignore SIGINT."""
    parent = "import subprocess, sys\n"
    parent += "from tests.ctrl_c import restore_ctrl_c\n"
    parent += "restore_ctrl_c()\n" if restored else ""
    parent += f"subprocess.run([sys.executable, '-c', {CHILD!r}])"
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, parent],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.stdout


def test_a_child_of_a_background_job_ignores_ctrl_c() -> None:
    assert said_by_child(restored=False) == "deaf\n"


def test_a_child_of_a_restored_background_job_hears_ctrl_c() -> None:
    assert "KeyboardInterrupt" in said_by_child(restored=True)
    assert "deaf" not in said_by_child(restored=True)
