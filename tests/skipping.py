"""Skipped tests: each says why; continuous integration skips only what it cannot run."""

import os
import re

import pytest

# what a machine of continuous integration lacks, as the reasons of the skips say it
LACKING = (
    r"\.(csv|csv\.gz|parquet|txt) is absent",  # real data is not part of the repository
    r"there is no GPU",
    r"there is a GPU",
    r"this user may not mount a tmpfs",  # needs root
    r"slow: run by make test-slow",
)


def fail_instead_of_skipping(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Fail a skipped test where the environment variable CI is set, unless it lacks what CI lacks.

    Args:
        report: changed in place.
    """
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not any(re.search(known, reason) for known in LACKING):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} is skipped in continuous integration: {reason}"
