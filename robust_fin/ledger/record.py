"""Record a finished run in the trial ledger, and describe its ICIR in view of all trials."""

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from robust_fin.bundle.folder import read_plain_config, read_provenance
from robust_fin.data.targets import KEPT
from robust_fin.evaluation.multiple_testing import SharpeMoments
from robust_fin.evaluation.run_selection import daily_series
from robust_fin.ledger.trials import LedgerTrial, Trials, append_entry, config_hash, settings_tried
from robust_fin.runtime.atomic_files import null_for_nan

SCORES = ("skill", "rank_ic")
COLUMNS = ["trading_date", "model", "score", "target", "outcome"]


def find_ledger(run: Path) -> Path | None:
    """Return the ledger that a run is counted in; None if the run's config names none.

    If the project was moved, it is the ledger above the run folder that contains the run.
    """
    known = read_plain_config(run).get("ledger")
    if known is None:
        return None
    path = Path(known)
    if path.parent.is_dir():
        return path
    for folder in run.absolute().parents:
        moved = folder / path.name
        if moved.is_file() and _contains(moved, run):
            return moved
    return path


def _contains(ledger: Path, run: Path) -> bool:
    path = path_from_ledger(ledger, run)
    return any(trial.run == path for trial in Trials.read(ledger).trials)


def path_from_ledger(ledger: Path, run: Path) -> str:
    """Return the run folder's path relative to the folder of the ledger."""
    try:
        return Path(os.path.relpath(run.absolute(), ledger.absolute().parent)).as_posix()
    except ValueError:  # on another drive
        return run.absolute().as_posix()


def utc_now() -> str:
    """Return the current UTC time, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_daily_series(run: Path) -> pd.DataFrame:
    """Return `daily_series` of the predictions of a finished run."""
    models = [("model", "in", ["net", "constant"])]
    return daily_series(
        pd.read_parquet(run / "predictions.parquet", columns=COLUMNS, filters=models)
    )


def record_trial(run: Path) -> str:
    """Append a finished run to the trial ledger; return `summarize_trials`.

    Args:
        run: the folder of a finished run.

    Raises:
        ConfigError: the ledger cannot be written.
    """
    ledger = find_ledger(run)
    if ledger is None:
        return summarize_trials(run)
    daily = _daily_ic(run)
    trial = _trial(run, ledger, daily)
    append_entry(ledger, trial)
    return _summarize(ledger, trial, daily)


def summarize_trials(run: Path) -> str:
    """Describe the number of trials on a run's bars, and the run's ICIR deflated by them.

    Args:
        run: the folder of a finished run; it is not added to the ledger.
    """
    ledger = find_ledger(run)
    if ledger is None or not ledger.is_file():
        return (
            f"No trial ledger{'' if ledger is None else f' at {ledger}'}: the number of earlier "
            "trials on these bars is unknown, and nothing is deflated."
        )
    daily = _daily_ic(run)
    return _summarize(ledger, _trial(run, ledger, daily), daily)


def _summarize(ledger: Path, trial: LedgerTrial, daily: Float[np.ndarray, " dates"]) -> str:
    if trial.labels != KEPT:
        return "This run is a control: it is in the trial ledger but does not count as a trial."
    trials = Trials.read(ledger).same_data(trial.data_sha256)
    distinct = trials.distinct()
    keys = [other.key() for other in distinct]
    if trial.key() not in keys:
        return f"This run is not in the trial ledger {ledger}; its ICIR cannot be deflated."
    number = keys.index(trial.key())
    first = 1 + sum(other.settings for other in distinct[:number])
    last, count = first + distinct[number].settings - 1, trials.count()
    numbers = f"Trial {first}" if first == last else f"Trials {first} to {last}"
    total = f" of {count}" if count > 1 else ""
    sentences = [f"{numbers}{total} on these bars.", _describe_icir(trials, daily)]
    if trials.damaged:
        lines = ", ".join(map(str, trials.damaged))
        sentences.append(f"Line {lines} of {trials.path} is damaged and not counted.")
    return " ".join(sentences)


def _daily_ic(run: Path) -> Float[np.ndarray, " dates"]:
    return read_daily_series(run)["ic"].to_numpy()


def _trial(run: Path, ledger: Path, daily: Float[np.ndarray, " dates"]) -> LedgerTrial:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    moments = SharpeMoments.from_daily(daily)
    icir = {"icir": moments.ratio, "skew": moments.skew, "kurtosis": moments.kurtosis}
    test = {name: metrics[f"test/{name}"] for name in SCORES} | {"dates": moments.dates}
    config, provenance = read_plain_config(run), read_provenance(run)
    return LedgerTrial(
        time=utc_now(),
        name=config["name"],
        run=path_from_ledger(ledger, run),
        config=config_hash(config),
        data_sha256=provenance["data_sha256"],
        data=provenance["data"],
        split=_describe_split(config),
        members=metrics["members"],
        seed=config["seed"],
        labels=config.get("debug", {}).get("labels", KEPT),
        val={name: metrics[f"val/{name}"] for name in SCORES},
        test=test | null_for_nan(icir),
        commit=provenance["commit"],
        settings=settings_tried(config),
    )


def _describe_split(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the name of the split scheme and its settings."""
    settings = dict(config["split"])
    return {"scheme": str(settings.pop("_target_")).rpartition(".")[2], **settings}


def _describe_icir(trials: Trials, daily: Float[np.ndarray, " dates"]) -> str:
    deflated, moments = trials.deflated(daily), SharpeMoments.from_daily(daily)
    if math.isnan(moments.ratio):
        return f"The {moments.dates} test dates with a rank IC are too few to judge an ICIR."
    icir = f"The ICIR of {moments.ratio:.3f} (daily rank IC, {moments.dates} dates)"
    if math.isnan(deflated.probability):
        return f"{icir} cannot be deflated: too few of these trials have an ICIR."
    probability = _format_probability(deflated.probability)
    if deflated.trials == 1:
        return f"{icir} is above 0 with probability {probability}; nothing to deflate."
    return (
        f"{icir} has a deflated probability of {probability}: this is the probability that the "
        f"true ICIR is above {deflated.expected_max:.3f}, which the best of {deflated.trials} "
        "trials without skill is expected to reach by chance."
    )


def _format_probability(probability: float) -> str:
    """Format with two digits, but never as 0 or 1."""
    if probability > 0.99:
        return "over 0.99"
    return "under 0.01" if probability < 0.01 else f"{probability:.2f}"
