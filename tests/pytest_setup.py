"""Setup of the test session: Ctrl-C is not ignored, and CI skips only what it cannot run."""

import os
import re
import signal
from typing import Any

import pytest


def restore_ctrl_c() -> None:
    """Install Python's default SIGINT handler in this process; child processes inherit it.

    A non-interactive shell starts background jobs (`pytest &`) with SIGINT ignored. Python keeps
    that, and children inherit it; a test that sends the signal would wait forever.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def compose_once_for_the_mode() -> None:
    """Remember which experiments are sweeps: Hydra composes the whole config to learn it.

    A command composes its config twice, once for `hydra.mode` alone, which only the experiment,
    the group sweep and hydra's own keys can change.
    """
    from hydra._internal.hydra import Hydra

    original, known = Hydra.get_mode, dict[tuple[object, ...], Any]()

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        names = ("experiment", "sweep", "hydra.mode")
        deciding = [word for word in overrides if any(name in word for name in names)]
        key = (config_name, *deciding)
        mode = known[key] if key in known else original(self, config_name, overrides)
        if mode is not None:  # None: the config cannot be composed
            known[key] = mode
        return mode

    Hydra.get_mode = get_mode  # type: ignore[method-assign]


def precompile_headers() -> None:
    """Parse torch's C++ headers once for all libraries of the tests: 2 s each instead of 5 s."""
    from robust_fin.training.engine import inductor

    original = inductor.compile_source

    def compile_source(*arguments: Any, **words: Any) -> Any:
        from torch._inductor.codecache import CppCodeCache, CppPythonBindingsCodeCache

        CppCodeCache._get_uncompiled_header = CppPythonBindingsCodeCache._get_uncompiled_header
        return original(*arguments, **words)

    inductor.compile_source = compile_source


# skip reasons that are accepted in continuous integration
ACCEPTED_IN_CI = (
    r"\.(csv|csv\.gz|parquet|txt) is absent",  # real data is not part of the repository
    r"there is no GPU",
    r"there is a GPU",
    r"this user may not mount a tmpfs",  # needs root
    r"slow: run by make test-slow",
)


def fail_instead_of_skipping(report: pytest.TestReport | pytest.CollectReport) -> None:
    """If the environment variable CI is set, fail a test skipped for no reason of ACCEPTED_IN_CI.

    Args:
        report: changed in place.
    """
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not any(re.search(pattern, reason) for pattern in ACCEPTED_IN_CI):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} is skipped in continuous integration: {reason}"
