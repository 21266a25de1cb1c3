"""What several test files share: where real data lies, and bars made by hand."""

import logging
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from robust_fin.runs.schema import register_schema
from tests.ctrl_c import restore_ctrl_c
from tests.made_once import made_once
from tests.skipping import fail_instead_of_skipping
from tests.small_runs import run_training

restore_ctrl_c()
torch.set_num_threads(1)  # tiny kernels on shared cores wait for each other
register_schema()  # what the verbs do before Hydra composes

ROOT = Path(__file__).parent.parent
MakeBars = Callable[..., pd.DataFrame]


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a file of real data by its name; the test skips, naming the file, where it is absent.

    The folder is that of the environment variable ROBUST_FIN_DATA, else ../shared/data.
    """

    def find(name: str) -> Path:
        folder = Path(os.environ.get("ROBUST_FIN_DATA", ROOT.parent / "shared" / "data"))
        if not (folder / name).is_file():
            pytest.skip(f"{folder / name} is absent")
        return folder / name

    return find


@pytest.fixture(scope="session", autouse=True)
def _ledger_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs that name no ledger are counted in one of the tests' own, not in the checkout's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUST_FIN_LEDGER", str(tmp_path_factory.mktemp("ledger") / "trials.jsonl"))
        yield


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `+experiment=smoke`, trained once; tests only look at it."""
    return made_once(tmp_path_factory, "smoke", run_training)


@pytest.fixture(autouse=True)
def _close_log_files() -> Iterator[None]:
    """Close the log files of runs in this process; Hydra leaves the last one open."""
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler) and handler.baseFilename != os.devnull:
            root.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="session")
def make_bars() -> MakeBars:
    """A valid bar table, as a file would hold it.

    `make_bars(rows=8, start="2024-03-04 15:00", every="1min", contract="ESH24", seed=0)` has the
    columns time (datetime64[ns, UTC], the bar's start), open, high, low, close (a random walk in
    ticks of 0.25 from 5000, each open the close before), volume (whole numbers of 1 to 99, as
    float64) and contract (text). It has no session and no VIX, and knows no holidays.
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
    """Leave the long counts to `-m slow`, which is make test-slow."""
    if config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run by make test-slow"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In continuous integration, fail a test that is skipped without need."""
    report = yield
    fail_instead_of_skipping(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that skips all its tests."""
    report = yield
    fail_instead_of_skipping(report)
    return report
