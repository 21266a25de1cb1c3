from pathlib import Path

import pytest

from tests.background_runs import SMALL, run_to_end
from tests.made_once import made_once


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `tests.background_runs.SMALL`, trained without interruption."""

    def make(folder: Path) -> None:
        folder.mkdir()
        run = folder / "run"
        words = [*SMALL, f"hydra.run.dir={run}", f"cache.folder={folder / 'cache'}"]
        run_to_end(words, log=run.with_suffix(".log"))

    return made_once(tmp_path_factory, "undisturbed", make) / "run"
