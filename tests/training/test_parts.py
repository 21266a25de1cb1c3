from pathlib import Path

import pytest

from robust_fin.runtime.process_state import RankError
from robust_fin.training.assembly import make_trainer
from tests.bars import config


def test_a_trainer_that_counts_on_processes_that_are_not_there_is_refused(tmp_path: Path) -> None:
    settings = config("trainer=ddp", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false")
    message = r"the Trainer counts on 2 processes, and 1 train together here"
    with pytest.raises(RankError, match=message):
        make_trainer(settings, tmp_path, [], stage="", has_val=True, settings={})
