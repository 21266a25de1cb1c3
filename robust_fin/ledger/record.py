"""A run's own line in the ledger, made from its run folder, and what all lines say of it."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
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
from robust_fin.ledger.trials import LedgerTrial, Trials, append, config_hash, settings_tried
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
    above = [folder / path.name for folder in run.absolute().parents]
    return next((one for one in above if one.is_file() and _has(one, run)), path)


def _has(ledger: Path, run: Path) -> bool:
    return any(one.run == seen_from(ledger, run) for one in Trials.read(ledger).trials)


def seen_from(ledger: Path, run: Path) -> str:
    """The run folder's path relative to the folder of the ledger."""
    try:
        return Path(os.path.relpath(run.absolute(), ledger.absolute().parent)).as_posix()
    except ValueError:  # on another drive
        return run.absolute().as_posix()


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_daily_series(run: Path) -> pd.DataFrame:
    """`daily_series` of a finished run."""
    models = [("model", "in", ["net", "constant"])]
    return daily_series(
        pd.read_parquet(run / "predictions.parquet", columns=COLUMNS, filters=models)
    )


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run as the ledger sees it.

    Attributes:
        ledger: that it is counted in.
        trial: its line.
        daily: rank IC of each test date.
    """

    ledger: Path
    trial: LedgerTrial
    daily: Float[np.ndarray, " dates"]

    @classmethod
    def of(cls, run: Path) -> "Finished | None":
        """From what a run left in its folder; None for one from before there were ledgers."""
        ledger = find_ledger(run)
        if ledger is None:
            return None
        daily = read_daily_series(run)["ic"].to_numpy()
        return cls(
            ledger,
            trial_of(run, ledger=ledger, track=SharpeMoments.from_daily(daily)),
            daily,
        )


def trial_of(run: Path, *, ledger: Path, track: SharpeMoments) -> LedgerTrial:
    """The line of a finished run.

    Args:
        run: the run folder.
        ledger: that the line is for.
        track: of the daily rank IC on test.
    """
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    moments = {"icir": track.ratio, "skew": track.skew, "kurtosis": track.kurtosis}
    test = {name: metrics[f"test/{name}"] for name in SCORES} | {"dates": track.dates}
    config, facts = read_plain_config(run), read_provenance(run)
    return LedgerTrial(
        time=now(),
        name=config["name"],
        run=seen_from(ledger, run),
        config=config_hash(config),
        data_sha256=facts["data_sha256"],
        data=facts["data"],
        split=split_of(config),
        members=metrics["members"],
        seed=config["seed"],
        labels=config.get("debug", {}).get("labels", KEPT),
        val={name: metrics[f"val/{name}"] for name in SCORES},
        test=test | null_for_nan(moments),
        commit=facts["commit"],
        settings=settings_tried(config),
    )


def split_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the split scheme by name, with its settings."""
    named = dict(config["split"])
    return {"scheme": str(named.pop("_target_")).rpartition(".")[2], **named}


def record_trial(run: Path) -> str:
    """Count a finished run, and say what its ICIR is worth after all runs on the same bars.

    Args:
        run: the folder of a finished run.

    Raises:
        ConfigError: the ledger cannot be written.
    """
    own = Finished.of(run)
    if own is not None:
        append(own.ledger, own.trial)
    return _words(own)


def summarize_trials(run: Path) -> str:
    """How many trials looked at a run's bars, and what its ICIR is worth after them.

    Args:
        run: the folder of a finished run; it is not counted here.
    """
    return _words(Finished.of(run))


def _words(own: Finished | None) -> str:
    if own is None or not own.ledger.is_file():
        return (
            f"No trial ledger{'' if own is None else f' at {own.ledger}'}: how often these bars "
            "were tried before is not known, and nothing is deflated."
        )
    if own.trial.labels != KEPT:
        return "A control is in the trial ledger and does not count as a trial."
    trials = Trials.read(own.ledger).same_data(own.trial.data_sha256)
    distinct = trials.distinct()
    keys = [one.key() for one in distinct]
    if own.trial.key() not in keys:
        return f"This run is not in the trial ledger {own.ledger}; its ICIR cannot be deflated."
    number = keys.index(own.trial.key())
    before = sum(one.settings for one in distinct[:number])
    place = _place(before, distinct[number].settings, trials.count())
    return " ".join([place, _claim(trials, own.daily), *_damage(trials)])


def _place(before: int, own: int, count: int) -> str:
    which = f"Trial {before + 1}" if own == 1 else f"Trials {before + 1} to {before + own}"
    return f"{which} of {count} on these bars." if count > 1 else "Trial 1 on these bars."


def _claim(trials: Trials, daily: Float[np.ndarray, " dates"]) -> str:
    """Honest about what the probability is of, and about when there is none."""
    found, track = trials.deflated(daily), SharpeMoments.from_daily(daily)
    if math.isnan(track.ratio):
        return f"The {track.dates} test dates with a rank IC are too few for an ICIR to be judged."
    said = f"The ICIR of {track.ratio:.3f} (daily rank IC, {track.dates} dates)"
    if math.isnan(found.probability):
        return f"{said} cannot be deflated: too few of these trials have one."
    if found.trials == 1:
        return (
            f"{said} is above 0 with probability {_chance(found.probability)}; nothing to deflate."
        )
    return (
        f"{said} has a deflated probability of {_chance(found.probability)}: so sure may one be "
        f"that the true one is above {found.expected_max:.3f}, which the best of "
        f"{found.trials} trials "
        "without skill is expected to reach by luck."
    )


def _chance(probability: float) -> str:
    """Two digits, and never a certainty."""
    if probability > 0.99:
        return "over 0.99"
    return "under 0.01" if probability < 0.01 else f"{probability:.2f}"


def _damage(trials: Trials) -> list[str]:
    if not trials.damaged:
        return []
    lines = ", ".join(map(str, trials.damaged))
    return [f"Line {lines} of {trials.path} is damaged: what it held is not counted."]
