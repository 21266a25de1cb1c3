"""Run a recorded non-finite step again, and show where the first non-finite value arises.

python -m robust_fin.replay record=RUN_FOLDER/nonfinite/step_<n>.safetensors
"""

from robust_fin.cli.command import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("replay")  # before torch is imported

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from robust_fin.bundle.config import check_constructors, parse_config
from robust_fin.cli.command import run_command
from robust_fin.errors import ConfigError
from robust_fin.runs.training import fit_settings
from robust_fin.runtime.terminal import RESULT, show
from robust_fin.training.recovery.record import StepRecord, read_record
from robust_fin.training.recovery.step_replay import FLOAT64, Replay, replay_step


def replay_record(path: Path, *, rows: int, modules: Sequence[str] = ()) -> list[Replay]:
    """Run a recorded step again, and print the first non-finite tensor and the rows that cause it.

    Args:
        path: file of the record.
        rows: most rows to print.
        modules: your own modules that the record may name.

    Raises:
        BundleError: the file is not a record.
        ConfigError: `rows` is below 1.
    """
    if rows < 1:
        raise ConfigError(f"rows={rows} must be at least 1")
    record = read_record(path)
    config = parse_config(record.config, origin=f"record={path}")
    check_constructors(config, modules=modules, origin=f"record={path}")
    replays = replay_step(record, fit_settings(config))
    show(*describe_step(record, replays, name=config.name), level=RESULT)
    show(*describe_rows(record, suspect_rows(replays), most=rows))
    return replays


def describe_step(record: StepRecord, replays: Sequence[Replay], *, name: str) -> list[str]:
    """Describe the step and its replays, one line each.

    Args:
        record: of the step.
        replays: in float64 and, if that was finite, in the precision of the run.
        name: of the experiment.
    """
    bad = record.bad
    lines = [
        f"step {bad.step} of {name}: loss {bad.loss:g}, gradient norm "
        f"{bad.gradient_norm:g}, learning rate {bad.lr:g}; {bad.reason}",
        f"gradient norms of the {len(record.norms)} steps before: {_describe_norms(record)}",
    ]
    for replay in replays:
        where = "float64" if replay.precision == FLOAT64 else replay.precision
        lines.append(
            f"again in {where}: loss {replay.loss:g}, gradient norm {replay.gradient_norm:g}"
        )
        if replay.bad_weights:
            lines.append(f"weights not finite before the step: {', '.join(replay.bad_weights)}")
        if replay.first is None:
            lines.append(f"every output, gradient and weight is finite in {where}")
        else:
            lines.append(f"first not finite: {replay.first.place}, its {replay.first.kind}")
    return lines


def suspect_rows(replays: Sequence[Replay]) -> list[int]:
    """Return the batch rows with a non-finite input, else those of the first non-finite tensor."""
    if replays[0].bad_rows:
        return list(replays[0].bad_rows)
    first = replays[-1].first
    return [] if first is None else list(first.rows)


def describe_rows(record: StepRecord, rows: Sequence[int], *, most: int) -> list[str]:
    """Describe rows of the batch by time, contract and inputs, one line each."""
    if not rows:
        return []
    size = len(record.bad.x)
    if len(rows) == size:
        return [f"rows that cause it: all {size:,} of the batch, so none in particular"]
    lines = [f"rows that cause it: {len(rows):,} of {size:,}"]
    for row in rows[:most]:
        parts = [f"row {row}"]
        if record.time is not None and record.contract is not None:
            time = np.datetime_as_string(record.time[row], unit="m")
            parts += [f"{time} UTC", record.contract[row]]
        inputs = zip(record.features, record.bad.x[row].tolist(), strict=True)
        values = [*inputs, ("target", float(record.bad.target[row]))]
        parts.append("  ".join(f"{name} {value:.6g}" for name, value in values))
        lines.append("   ".join(parts))
    return lines


def _describe_norms(record: StepRecord) -> str:
    norms = record.norms.numpy()
    norms = norms[np.isfinite(norms)]
    if not norms.size:
        return "none"
    return f"median {np.median(norms):.3g}, largest {norms.max():.3g}, last {norms[-1]:.3g}"


def replay_config(config: DictConfig) -> None:
    """Replay the record of a config."""
    replay_record(Path(str(config.record)).expanduser(), rows=config.rows, modules=config.modules)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(replay_config, config_name="replay", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
