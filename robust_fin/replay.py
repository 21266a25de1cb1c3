"""python -m robust_fin.replay record=RUN_FOLDER/nonfinite/step_<n>.safetensors."""

from robust_fin.cli.help import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("replay")  # before torch is imported

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from robust_fin.cli.command import run_command
from robust_fin.errors import ConfigError
from robust_fin.runs.settings import fit_settings
from robust_fin.runtime.terminal import RESULT, show
from robust_fin.training.recovery.record import (
    FLOAT64,
    Replay,
    StepRecord,
    read_record,
    replay_step,
)


def replay_record(path: Path, *, rows: int) -> list[Replay]:
    """Run the recorded step again, and say what is not finite first, and by which rows.

    Args:
        path: of the record.
        rows: shown at most.

    Raises:
        BundleError: `path` is no record.
    """
    if rows < 1:
        raise ConfigError(f"rows={rows} must be at least 1")
    record = read_record(path)
    config = OmegaConf.create(record.config)
    assert isinstance(config, DictConfig)
    found = replay_step(record, fit_settings(config))
    show(*story(record, found, name=config.name), level=RESULT)
    show(*row_lines(record, guilty_rows(found), most=rows))
    return found


def story(record: StepRecord, found: Sequence[Replay], *, name: str) -> list[str]:
    """What happened, a line each."""
    bad = record.bad
    lines = [
        f"step {bad.step} of {name}: loss {bad.loss:g}, gradient norm "
        f"{bad.gradient_norm:g}, learning rate {bad.lr:g}; {bad.reason}",
        f"gradient norms of the {len(record.norms)} steps before: {_norms(record)}",
    ]
    for one in found:
        where = "float64" if one.precision == FLOAT64 else one.precision
        lines.append(f"again in {where}: loss {one.loss:g}, gradient norm {one.gradient_norm:g}")
        if one.bad_weights:
            lines.append(f"weights not finite before the step: {', '.join(one.bad_weights)}")
        if one.first is None:
            lines.append(f"every output, gradient and weight is finite in {where}")
        else:
            lines.append(f"first not finite: {one.first.place}, its {one.first.kind}")
    return lines


def guilty_rows(found: Sequence[Replay]) -> list[int]:
    """Places in the batch: rows that came in bad, else those where the first tensor is bad."""
    last = found[-1]
    if found[0].bad_rows:
        return list(found[0].bad_rows)
    return [] if last.first is None else list(last.first.rows)


def row_lines(record: StepRecord, rows: Sequence[int], *, most: int) -> list[str]:
    """Rows of the batch with their times and what the net was given, a line each."""
    if not rows:
        return []
    every = len(record.bad.x)
    if len(rows) == every:
        return [f"rows that cause it: all {every:,} of the batch, so none in particular"]
    lines = [f"rows that cause it: {len(rows):,} of {every:,}"]
    for place in rows[:most]:
        words = [f"row {place}"]
        if record.time is not None and record.contract is not None:
            time = np.datetime_as_string(record.time[place], unit="m")
            words += [f"{time} UTC", record.contract[place]]
        named = zip(record.features, record.bad.x[place].tolist(), strict=True)
        values = [*named, ("target", float(record.bad.target[place]))]
        words.append("  ".join(f"{name} {value:.6g}" for name, value in values))
        lines.append("   ".join(words))
    return lines


def _norms(record: StepRecord) -> str:
    norms = record.norms.numpy()
    norms = norms[np.isfinite(norms)]
    if not norms.size:
        return "none"
    return f"median {np.median(norms):.3g}, largest {norms.max():.3g}, last {norms[-1]:.3g}"


def job(config: DictConfig) -> None:
    """What Hydra calls."""
    replay_record(Path(str(config.record)).expanduser(), rows=config.rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    return run_command(job, config_name="replay", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
