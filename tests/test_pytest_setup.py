"""Tests of the session setup: Ctrl-C is restored, and CI skips only what it cannot run."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.pytest_setup import fail_instead_of_skipping

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
CHILD = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('ignored', flush=True)"


def child_output(*, restored: bool) -> str:
    """Return the output of a child that sends itself SIGINT while its parents ignore SIGINT."""
    parent = "import subprocess, sys\n"
    parent += "from tests.pytest_setup import restore_ctrl_c\n"
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


@posix
def test_child_of_a_background_job_ignores_ctrl_c() -> None:
    assert child_output(restored=False) == "ignored\n"


@posix
def test_child_receives_ctrl_c_after_restore() -> None:
    assert "KeyboardInterrupt" in child_output(restored=True)
    assert "ignored" not in child_output(restored=True)


def skipped(reason: str) -> pytest.TestReport:
    where = ("tests/test_some.py", 7, f"Skipped: {reason}")
    return pytest.TestReport(
        "tests/test_some.py::test_some", ("tests/test_some.py", 7, "test_some"), {}, "skipped",
        where, "setup",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("could not import 'optuna': No module named 'optuna'", "failed"),
        ("none of chromium, google-chrome is installed", "failed"),
        ("reads /proc", "failed"),
        ("unconditional skip", "failed"),
        ("/data/vix_daily.csv is absent", "skipped"),
        ("there is no GPU", "skipped"),
        ("this user may not mount a tmpfs: must be superuser", "skipped"),
    ],
)
def test_ci_skips_only_tests_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, reason: str, outcome: str
) -> None:
    monkeypatch.setenv("CI", "true")
    report = skipped(reason)
    fail_instead_of_skipping(report)
    assert report.outcome == outcome
    assert reason in str(report.longrepr)
    if outcome == "failed":
        assert "test_some.py::test_some is skipped in continuous integration" in report.longrepr


def test_any_test_may_be_skipped_outside_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    report = skipped("could not import 'optuna'")
    fail_instead_of_skipping(report)
    assert report.outcome == "skipped"


def test_expected_failure_is_not_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    report = skipped("xfail")
    report.wasxfail = "not yet"
    fail_instead_of_skipping(report)
    assert report.outcome == "skipped"
