"""python -m robust_fin.predict run=RUN_FOLDER source.path=FILE out=FILE.parquet."""

from robust_fin.cli.help import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("predict")  # before torch is imported

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robust_fin.bundle.folder import load_bundle, read_config
from robust_fin.cli.command import make_module_callable, run_command
from robust_fin.cli.composition import compose_config
from robust_fin.errors import ConfigError
from robust_fin.market.schema import write_bars
from robust_fin.runs.run import Run
from robust_fin.runtime.process_state import preserve_process_state
from robust_fin.runtime.terminal import RESULT, show


def predict(run: Run | Path | str, bars: pd.DataFrame | Path | str, *words: str) -> pd.DataFrame:
    """Score every bar that has all features.

    Args:
        run: a finished run, or its folder.
        bars: a file, or a table with stamps that mark the start of a bar.
        words: overrides of source; what is not among them is taken from the run, so that its
            timezone and calendar hold for the new bars too.

    Returns:
        The predictions table, one row a bar; target and outcome are null for the newest.

    Raises:
        BundleError: the run has not finished.
        SourceError: the bars break a rule of a bar table.

    Examples:
        >>> from robust_fin import fit, load_bars, predict
        >>> tiny = ["source.synthetic.rows=4000", "features=study", "report.pictures=false"]
        >>> run = fit("smoke", *tiny)
        >>> table = predict(run, load_bars(None, "source.synthetic.rows=100"))
        >>> len(table), table["model"].unique().tolist(), int(table["outcome"].isna().sum())
        (95, ['net'], 1)
    """
    folder = Run.of(run).folder
    given = list(words)
    with ExitStack() as stack:
        stack.enter_context(preserve_process_state())
        if isinstance(bars, pd.DataFrame):
            kept = Path(stack.enter_context(TemporaryDirectory())) / "bars.parquet"
            source = compose_config("predict", given).config.source
            write_bars(bars, kept, length=_length(folder, source, given))
            given += [f"source.{key}" for key in ("timezone", "time_format", "stamp", "fraction")]
        else:
            kept, source = Path(bars), compose_config("predict", given).config.source
        source.path = str(kept)
        return scores(folder, source, given=[*given, "source.path"])


def scores(run: Path, source: DictConfig, *, given: Sequence[str]) -> pd.DataFrame:
    """The predictions table of a run's forecaster.

    Args:
        run: the run folder.
        source: where the bars come from.
        given: overrides of source that hold; what is not among them is taken from the run.
    """
    bundle = load_bundle(run)
    torch.set_num_threads(bundle.config.threads)
    merged = bundle.config.source
    OmegaConf.update(merged, "spikes", source.spikes)  # a run's own were to test the run
    for word in given:
        key = word.partition("=")[0].lstrip("+").removeprefix("source.")
        OmegaConf.update(merged, key, OmegaConf.select(source, key))
    return bundle.predict_source(instantiate(merged))


def _length(run: Path, source: DictConfig, given: Sequence[str]) -> str:
    named = any(word.startswith("source.bar=") for word in given)
    return str(source.bar if named else read_config(run).source.bar)


def write_scores(config: DictConfig, *, given: Sequence[str]) -> Path:
    """Score, and write the predictions table.

    Args:
        config: run, source and out.
        given: the overrides of source that were written on the command line.

    Returns:
        The file written.
    """
    out = Path(str(config.out)).expanduser()
    if out.suffix != ".parquet":
        raise ConfigError(f"out={config.out} must end in .parquet")
    table = scores(Path(config.run).expanduser(), config.source, given=given)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(out, index=False)
    except OSError as error:
        raise ConfigError(f"out={out} cannot be written: {error}") from error
    unknown = int(table["outcome"].isna().sum())
    said = f"{len(table):,} rows scored, {unknown:,} of them without an outcome yet: {out}"
    show(said, level=RESULT)
    return out


def job(config: DictConfig) -> None:
    """What Hydra calls."""
    words = HydraConfig.get().overrides.task
    write_scores(config, given=[word for word in words if word.lstrip("+").startswith("source.")])


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    return run_command(job, config_name="predict", argv=argv)


make_module_callable(predict)

if __name__ == "__main__":
    sys.exit(main())
