"""Train a net on bars and judge it on the test span.

python -m robust_fin.train +experiment=NAME [source.path=FILE] [group=choice] [key=value] [-m]
python -m robust_fin.train resume=RUN_FOLDER [trainer.max_epochs=N] [verbose=N] [modules=[MINE]]

The first form starts a run, or with `-m` a sweep of runs. The second form continues an interrupted
run or sweep in its own folder. `robust_fin/runs/training.py` tells what one run does: it reads the
bars, fits on train, chooses on val, scores test once and writes the results.
"""

from robust_fin.cli.command import print_help_if_asked
from robust_fin.cli.suggestions import parse_modules, unquote

if __name__ == "__main__":
    print_help_if_asked("train")  # before torch is imported

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from robust_fin.bundle.config import check_constructors, read_config
from robust_fin.cli.command import report_errors, run_command
from robust_fin.errors import ConfigError
from robust_fin.runs.job import Job, is_launched_rank, rank_overrides, run_rank, start_job
from robust_fin.runs.schema import apply_schema, register_schema, without_sweep_keys
from robust_fin.runs.training import TRAIN_MODULE, run_training
from robust_fin.sweeps.hydra_sweeper import is_sweep_resume, read_resume_command, register_sweeper


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: words after the command; None for those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    register_schema()
    if is_launched_rank(words):
        return run_rank(words, run_training)
    register_sweeper()
    if is_sweep_resume(words):
        return resume_sweep(words)
    if any(word.startswith("resume=") for word in words):
        return report_errors(lambda: resume_run(words))
    return run_command(start_run, config_name="train", argv=[*words, *rank_overrides(os.environ)])


def start_run(config: DictConfig) -> None:
    """Start a run with a composed config; Hydra calls this once per job of a sweep."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    job = Job(without_sweep_keys(config), folder, resume=False)
    start_job(job, run_training, module=TRAIN_MODULE)


def resume_run(words: Sequence[str]) -> None:
    """Continue an interrupted run in its own folder.

    Args:
        words: resume=RUN_FOLDER, verbose, the limits of the Trainer to change, and modules=[...],
            your own modules that the run may use.

    Raises:
        ConfigError: a key other than trainer.max_* and verbose is overridden.
        BundleError: the folder is not a run folder, or names code that is neither ours nor in
            modules.
    """
    values = dict(word.partition("=")[::2] for word in words)
    folder = Path(unquote(values.pop("resume"))).expanduser()
    modules = parse_modules(values.pop("modules", "[]"))
    config = read_config(folder)
    check_constructors(config, modules=modules, origin=str(folder))
    limits = {f"trainer.{name}" for name in config.trainer if name.startswith("max_")}
    for key in values:
        if key not in {*limits, "verbose"}:
            raise ConfigError(
                f"{key}={values[key]} cannot be changed on resume; only trainer.max_epochs, "
                "trainer.max_steps, trainer.max_time and verbose can. Start another run for other "
                "settings"
            )
    try:
        changes = OmegaConf.from_dotlist([f"{key}={value}" for key, value in values.items()])
    except YAMLError as error:
        raise ConfigError(f"{' '.join(words)} cannot be read: {error}") from error
    merged = OmegaConf.merge(apply_schema(config), changes)
    assert isinstance(merged, DictConfig)
    job = Job(merged, folder.absolute(), resume=True)
    start_job(job, run_training, module=TRAIN_MODULE)


def resume_sweep(words: Sequence[str]) -> int:
    """Continue a sweep in the folder in which it was started, and return the exit code."""
    commands: list[tuple[list[str], Path]] = []
    if code := report_errors(lambda: commands.append(read_resume_command(words))):
        return code
    ((argv, folder),) = commands
    with contextlib.chdir(folder):
        return run_command(start_run, config_name="train", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
