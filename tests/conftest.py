"""Shared fixtures and hooks: real data, hand-made bars, the smoke run, skipped tests."""

import logging
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.made_once import made_once
from tests.pytest_setup import (
    compose_from_memory,
    compose_once_for_the_mode,
    fail_instead_of_skipping,
    precompile_headers,
    restore_ctrl_c,
)

restore_ctrl_c()

ROOT = Path(__file__).parent.parent
MakeBars = Callable[..., pd.DataFrame]


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function that finds a file of real data by name, and skips if it is absent.

    The folder is the environment variable ROBUST_FIN_DATA, by default ../shared/data.
    """

    def find(name: str) -> Path:
        folder = Path(os.environ.get("ROBUST_FIN_DATA", ROOT.parent / "shared" / "data"))
        if not (folder / name).is_file():
            pytest.skip(f"{folder / name} is absent")
        return folder / name

    return find


def pytest_collection(session: pytest.Session) -> None:
    """Prepare a process that runs tests; the one that distributes them needs no torch."""
    if session.config.pluginmanager.has_plugin("dsession"):
        return
    import torch

    from robust_fin.runs.schema import register_schema

    torch.set_num_threads(1)  # tiny kernels on shared cores wait for each other
    register_schema()  # as the commands do before Hydra composes
    compose_once_for_the_mode()
    compose_from_memory()
    precompile_headers()


@pytest.fixture(scope="session", autouse=True)
def _ledger_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Count runs of the tests in a temporary ledger instead of the one of the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUST_FIN_LEDGER", str(tmp_path_factory.mktemp("ledger") / "trials.jsonl"))
        yield


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of `+experiment=smoke`, trained once; tests only read it."""
    from tests.small_runs import run_training

    return made_once(tmp_path_factory, "smoke", run_training)


@pytest.fixture(autouse=True)
def _close_log_handlers() -> Iterator[None]:
    """Remove the log handlers that Hydra leaves behind: an open file, a stream that is closed."""
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) in (logging.StreamHandler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="session")
def make_bars() -> MakeBars:
    """Return a function that makes a valid bar table as read from a file.

    `make_bars(rows=8, start="2024-03-04 15:00", every="1min", contract="ESH24", seed=0)` has the
    columns time (datetime64[ns, UTC], the bar's start), open, high, low, close (a random walk in
    ticks of 0.25 from 5000, each open is the previous close), volume (integers from 1 to 99, as
    float64) and contract (text). It has no sessions, VIX or holidays.
    """

    def make(
        *,
        rows: int = 8,
        start: str = "2024-03-04 15:00",
        every: str = "1min",
        contract: str = "ESH24",
        seed: int = 0,
    ) -> pd.DataFrame:
        random = np.random.default_rng(seed)
        close = 5000 + 0.25 * np.cumsum(random.integers(-3, 4, rows))
        opened = np.append(5000.0, close[:-1])
        wick = 0.25 * random.integers(0, 3, (2, rows))
        return pd.DataFrame(
            {
                "time": pd.date_range(start, periods=rows, freq=every, tz="UTC").as_unit("ns"),
                "open": opened,
                "high": np.maximum(opened, close) + wick[0],
                "low": np.minimum(opened, close) - wick[1],
                "close": close,
                "volume": random.integers(1, 100, rows).astype(np.float64),
                "contract": pd.Series([contract] * rows, dtype="str"),
            }
        )

    return make


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests unless -m is given; make test-slow runs them."""
    if config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run by make test-slow"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped test in continuous integration if it could run there."""
    report = yield
    fail_instead_of_skipping(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a file that skips all its tests, likewise."""
    report = yield
    fail_instead_of_skipping(report)
    return report
