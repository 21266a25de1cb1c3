"""python -m robust_fin.train +experiment=NAME [source.path=FILE] [group=choice] [key=value] [-m].

python -m robust_fin.train resume=RUN_FOLDER [trainer.max_epochs=N]
"""

from robust_fin.cli.help import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("train")  # before torch is imported

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from robust_fin.bundle.folder import read_config
from robust_fin.cli.command import report_errors, run_command
from robust_fin.errors import ConfigError
from robust_fin.runs.job import Job, is_launched, run_rank, start, words_of_rank
from robust_fin.runs.schema import apply_schema, register_schema, without_sweep_keys
from robust_fin.runs.training import MODULE, work
from robust_fin.sweeps.hydra_sweeper import is_sweep_resume, read_resume_command, register_sweeper


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
    merged = OmegaConf.merge(apply_schema(config), given)
    assert isinstance(merged, DictConfig)
    start(Job(merged, folder.absolute(), resume=True), work, module=MODULE)


def job(config: DictConfig) -> None:
    """What Hydra calls, once a job of a sweep."""
    run = Path(HydraConfig.get().runtime.output_dir)
    start(Job(without_sweep_keys(config), run, resume=False), work, module=MODULE)


def resume_sweep(words: Sequence[str]) -> int:
    """Go on with a sweep in its own folder; returns the exit code."""
    found: list[tuple[list[str], Path]] = []
    if code := report_errors(lambda: found.append(read_resume_command(words))):
        return code
    ((whole, folder),) = found
    with contextlib.chdir(folder):
        return run_command(job, config_name="train", argv=whole)


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    register_schema()
    if is_launched(words):
        return run_rank(words, work)
    register_sweeper()
    if is_sweep_resume(words):
        return resume_sweep(words)
    if any(word.startswith("resume=") for word in words):
        return report_errors(lambda: resume_run(words))
    return run_command(job, config_name="train", argv=[*words, *words_of_rank(os.environ)])


if __name__ == "__main__":
    sys.exit(main())
