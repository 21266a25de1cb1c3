"""python -m robust_fin.train +experiment=NAME [source.path=FILE] [group=choice] [key=value] [-m].

python -m robust_fin.train resume=RUN_FOLDER [trainer.max_epochs=N]
"""

from robust_fin.usage import answer_help

if __name__ == "__main__":
    answer_help("train")  # before torch is imported

import contextlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robust_fin.bundle import BUNDLE, read_config, start_bundle, write_config
from robust_fin.bundle.failure import reason_kept
from robust_fin.bundle.whole_files import full_disk_said
from robust_fin.command import guarded, run_job
from robust_fin.data.datamodule import BarDataModule, Market
from robust_fin.data.folds import cut_folds
from robust_fin.data.label_controls import KEPT
from robust_fin.errors import ConfigError
from robust_fin.evaluation.board_session import failure_shown, open_session
from robust_fin.evaluation.console import (
    DETAILS,
    RESULT,
    judgement_tables,
    metric_tables,
    show,
    target_table,
)
from robust_fin.evaluation.report import REPORT
from robust_fin.evaluation.summary import summary_table
from robust_fin.evaluation.verdict import verdict
from robust_fin.hardware.group import first_on_machine_first, is_first, require_agreement
from robust_fin.processes import Job, is_launched, run_rank, start, words_of_rank
from robust_fin.progress import hidden
from robust_fin.results import METRICS, FoldRun, write_results
from robust_fin.settings import check_ranges, of_run, register_schema, typed
from robust_fin.sweeps.plugin import is_resumed, register_sweeper, words_of_sweep
from robust_fin.training.fitting import Fit, FitPlan, fit
from robust_fin.training.lineage import (
    refit_goes_on,
    remove_checkpoints,
    require_resumable,
    require_same_bars,
)
from robust_fin.training.member_fit import fit_population
from robust_fin.training.members import wants_population
from robust_fin.trials import placed, record_trial
from robust_fin.train_run import MODULE, work
from robust_fin.verbosity import saying, verbosity_of

def resume_run(words: Sequence[str]) -> None:
    """Go on with an interrupted run in its own folder.

    Raises:
        ConfigError: something else than trainer.max_* is overridden.
        BundleError: the folder is not one of a run.
    """
    values = dict(word.partition("=")[::2] for word in words)
    folder = Path(values.pop("resume")).expanduser()
    config = read_config(folder)
    for key in values:
        if key not in {f"trainer.{name}" for name in config.trainer if name.startswith("max_")}:
            raise ConfigError(
                f"{key}={values[key]} cannot be changed on resume; only trainer.max_epochs, "
                "trainer.max_steps and trainer.max_time can. Start another run for other settings"
            )
    given = OmegaConf.from_dotlist([f"{key}={value}" for key, value in values.items()])
    merged = OmegaConf.merge(typed(config), given)
    assert isinstance(merged, DictConfig)
    start(Job(merged, folder.absolute(), resume=True), work, module=MODULE)


def job(config: DictConfig) -> None:
    """What Hydra calls, once a job of a sweep."""
    run = Path(HydraConfig.get().runtime.output_dir)
    start(Job(of_run(config), run, resume=False), work, module=MODULE)


def resume_sweep(words: Sequence[str]) -> int:
    """Go on with a sweep in its own folder; returns the exit code."""
    found: list[tuple[list[str], Path]] = []
    if code := guarded(lambda: found.append(words_of_sweep(words))):
        return code
    ((whole, folder),) = found
    with contextlib.chdir(folder):
        return run_job(job, config_name="train", argv=whole)


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    register_schema()
    if is_launched(words):
        return run_rank(words, work)
    register_sweeper()
    if is_resumed(words):
        return resume_sweep(words)
    if any(word.startswith("resume=") for word in words):
        return guarded(lambda: resume_run(words))
    return run_job(job, config_name="train", argv=[*words, *words_of_rank(os.environ)])


if __name__ == "__main__":
    sys.exit(main())
