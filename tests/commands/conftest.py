from pathlib import Path

import pytest

from tests.started import SMALL, run_to_end


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `tests.started.SMALL`, trained by a process that nothing happened to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    words = [*SMALL, f"hydra.run.dir={run}", f"cache.folder={run.parent / 'cache'}"]
    run_to_end(words, log=run.with_suffix(".log"))
    return run
