"""Score new bars with the net of a finished run.

python -m robust_fin.predict run=RUN_FOLDER source.path=FILE out=FILE.parquet
"""

from robust_fin.cli.command import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("predict")  # before torch is imported

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from robust_fin.bundle.config import build, read_config
from robust_fin.bundle.folder import read_provenance
from robust_fin.cli.command import make_module_callable, run_command
from robust_fin.cli.composition import compose_config
from robust_fin.errors import ConfigError
from robust_fin.market.columns import write_bars
from robust_fin.runs.run import Run
from robust_fin.runtime.files import replacing
from robust_fin.runtime.process_state import preserve_process_state
from robust_fin.runtime.terminal import RESULT, show


def predict(run: Run | Path | str, bars: pd.DataFrame | Path | str, *words: str) -> pd.DataFrame:
    """Score every bar that has all features; bars that lack one have no row.

    Bars before the first test row of the run are in sample: the net was trained or chosen on them.

    Args:
        run: a finished run, or its folder.
        bars: a file, or a table whose times mark the start of each bar.
        words: overrides of `source`; every other key is taken from the run, so that its timezone
            and calendar apply to the new bars too. modules=[my_net] names your own modules.

    Returns:
        The predictions table, one row per bar; target and outcome are null for the newest bars.

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
    composed = compose_config("predict", list(words)).config
    opened = Run.open(run, modules=composed.modules)
    folder = opened.folder
    overrides = list(words)
    with preserve_process_state(), TemporaryDirectory() as scratch:
        source = composed.source
        path = Path(scratch) / "bars.parquet"
        if isinstance(bars, pd.DataFrame):
            bar, columns = (_setting(folder, source, overrides, key) for key in ("bar", "columns"))
            write_bars(bars, path, length=str(bar), columns=dict(columns or {}))
            overrides += [f"source.{k}" for k in ("timezone", "time_format", "stamp", "fraction")]
        else:
            path = Path(bars)
        source.path = str(path)
        return score_source(opened, source, overrides=[*overrides, "source.path"])


def score_source(run: Run, source: DictConfig, *, overrides: Sequence[str]) -> pd.DataFrame:
    """Return the predictions table of a run's net on the bars of a source.

    Args:
        run: a finished run.
        source: config of the source.
        overrides: keys of `source` that apply; every other key is taken from the run.
    """
    bundle = run.bundle
    torch.set_num_threads(run.config.threads)
    merged = bundle.config.copy()  # the bundle compares the bars with its own source
    OmegaConf.update(merged, "source.spikes", source.spikes)  # the run's were a test of the run
    for word in overrides:
        key = word.partition("=")[0].lstrip("+").removeprefix("source.")
        OmegaConf.update(merged, f"source.{key}", OmegaConf.select(source, key))
    return bundle.predict_source(build(merged, "source"), trained_on=read_provenance(run.folder))


def _setting(run: Path, source: DictConfig, overrides: Sequence[str], key: str) -> Any:
    """Return a key of the source: as overridden, else as the run has it."""
    overridden = any(word.startswith(f"source.{key}=") for word in overrides)
    return source[key] if overridden else read_config(run).source.get(key)


def write_predictions(config: DictConfig) -> None:
    """Score the bars and write the predictions table.

    Raises:
        ConfigError: `out` is not a .parquet file, or cannot be written.
    """
    words = HydraConfig.get().overrides.task
    overrides = [word for word in words if word.lstrip("+").startswith("source.")]
    out = Path(str(config.out)).expanduser()
    if out.suffix != ".parquet":
        raise ConfigError(f"out={config.out} must end in .parquet")
    run = Run.open(config.run, modules=config.modules)
    table = score_source(run, config.source, overrides=overrides)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as part:
            table.to_parquet(part, index=False)
    except OSError as error:
        raise ConfigError(f"out={out} cannot be written: {error}") from error
    unknown = int(table["outcome"].isna().sum())
    show(
        f"{len(table):,} rows scored, {unknown:,} of them without an outcome yet: {out}",
        level=RESULT,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(write_predictions, config_name="predict", argv=argv)


make_module_callable(predict)

if __name__ == "__main__":
    sys.exit(main())
