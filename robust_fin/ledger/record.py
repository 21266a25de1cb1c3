"""A run's entry in the trial ledger, and looks at the lockbox."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from robust_fin.bundle.config import build, planted_rank_ic, read_plain_config
from robust_fin.bundle.folder import Bundle, commit, load_bundle, read_provenance
from robust_fin.bundle.predictions import Forecast, mean_forecast, predictions_table
from robust_fin.data.examples import Examples
from robust_fin.data.folds import Market
from robust_fin.data.splits import Timeline
from robust_fin.data.targets import KEPT
from robust_fin.errors import BundleError, ConfigError
from robust_fin.evaluation.multiple_testing import SharpeMoments
from robust_fin.evaluation.run_selection import daily_series, describe_rows, read_tested_rows
from robust_fin.evaluation.significance import Judgement, interval_metrics, judge
from robust_fin.ledger.trials import (
    LedgerTrial,
    Look,
    Trials,
    Void,
    append_entry,
    config_hash,
    path_from_ledger,
    settings_tried,
)
from robust_fin.runtime.files import null_for_nan, write_json
from robust_fin.runtime.records import read_json, read_table
from robust_fin.training.baselines import constant, minus_last_return

SCORES = ("skill", "rank_ic")
COLUMNS = {"trading_date": "M", "model": "", "score": "f", "target": "f", "outcome": "f"}


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
    trials = Trials.read(ledger)
    known = (*trials.trials, *(trial for trial, _ in trials.voided))
    return any(trial.run == path for trial in known)


def utc_now() -> str:
    """Return the current UTC time, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_daily_series(run: Path) -> pd.DataFrame:
    """Return `daily_series` of the predictions of a finished run."""
    models = [("model", "in", ["net", "constant"])]
    return daily_series(
        read_table(
            run / "predictions.parquet",
            COLUMNS,
            finite=("score", "target", "outcome"),
            only=True,
            filters=models,
        )
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


def count_trials(run: Path) -> int | None:
    """Count the trials that share test rows with a finished run; None without a ledger."""
    ledger = find_ledger(run)
    if ledger is None or not ledger.is_file():
        return None
    trial = _trial(run, ledger, _daily_ic(run))
    return Trials.read(ledger).same_rows(trial).count()


def void_trial(run: Path, *, reason: str) -> str:
    """Append a line by which the trials of a run no longer count; return `summarize_trials`.

    The trials stay in the ledger, and the reason is shown wherever trials are counted.

    Args:
        run: the folder of a finished run.
        reason: why its result means nothing, such as a wrong time zone.

    Raises:
        ConfigError: there is no reason, or no trial of the run to void.
    """
    ledger = find_ledger(run)
    if not reason.strip():
        raise ConfigError('void="" gives no reason; write void="the bars had a wrong time zone"')
    path = None if ledger is None else path_from_ledger(ledger, run)
    if ledger is None or all(trial.run != path for trial in Trials.read(ledger).trials):
        raise ConfigError(f"no trial of {run} counts in the ledger {ledger}: nothing to void")
    append_entry(ledger, Void(utc_now(), str(path), reason.strip()))
    return summarize_trials(run)


def _summarize(ledger: Path, trial: LedgerTrial, daily: Float[np.ndarray, " dates"]) -> str:
    if trial.labels != KEPT:
        return "This run is a control: it is in the trial ledger but does not count as a trial."
    trials = Trials.read(ledger).same_rows(trial)
    distinct = trials.distinct()
    keys = [other.key() for other in distinct]
    if trial.key() not in keys and any(other.run == trial.run for other, _ in trials.voided):
        return f"This run does not count as a trial. {_describe_voided(trials)}"
    if trial.key() not in keys:
        return f"This run is not in the trial ledger {ledger}; its ICIR cannot be deflated."
    number = keys.index(trial.key())
    first = 1 + sum(other.settings for other in distinct[:number])
    last, count = first + distinct[number].settings - 1, trials.count()
    numbers = f"Trial {first}" if first == last else f"Trials {first} to {last}"
    total = f" of {count}" if count > 1 else ""
    sentences = [f"{numbers}{total} on these bars.", _describe_icir(trials, daily)]
    if trials.voided:
        sentences.append(_describe_voided(trials))
    if trials.damaged:
        lines = ", ".join(map(str, trials.damaged))
        sentences.append(f"Line {lines} of {trials.path} is damaged and not counted.")
    return " ".join(sentences)


def _describe_voided(trials: Trials) -> str:
    reasons = dict.fromkeys(f"{trial.run} ({void.reason})" for trial, void in trials.voided)
    return f"Voided, not counted: {'; '.join(reasons)}."


def _daily_ic(run: Path) -> Float[np.ndarray, " dates"]:
    return read_daily_series(run)["ic"].to_numpy()


def _trial(run: Path, ledger: Path, daily: Float[np.ndarray, " dates"]) -> LedgerTrial:
    metrics = read_json(run / "metrics.json", {"members": int})
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
        tested=read_tested_rows(run),
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


LOCKBOX = "lockbox.json"
_SHOWN = 5  # runs named in a message
_LOGGED = ("skill", "skill_low", "skill_high", "rank_ic", "rank_ic_low", "rank_ic_high")


@dataclass(frozen=True, slots=True)
class LockboxResult:
    """Result of a look at the lockbox.

    Attributes:
        judgement: judgement of the net on the locked rows.
        message: how often these rows were looked at before.
    """

    judgement: Judgement
    message: str


def open_lockbox(run: Path, *, modules: Sequence[str] = ()) -> LockboxResult:
    """Score the locked rows with a run's bundle, and log the look before the result is returned.

    Nothing is fitted: features, transform and target are those of the run's training rows. With
    several folds, the net of the last fold is used.

    Args:
        run: the folder of a finished run with split.lockbox above 0.
        modules: your own modules that the run may use.

    Raises:
        BundleError: the run has no lockbox or has not finished, or its bars have changed.
        ConfigError: the look cannot be logged.
    """
    bundle, config = load_bundle(run, modules=modules), read_plain_config(run)
    share, ledger = _locked_share(run, config), find_ledger(run)
    if ledger is None:
        raise ConfigError(
            f"{run} names no trial ledger to log the look in: it was trained before there were "
            "ledgers. Train it again"
        )
    torch.set_num_threads(config["threads"])
    table = score_lockbox(bundle, run, share=share)
    judgement = judge(
        table,
        instrument=build(bundle.config, "instrument", modules=modules),
        planted=planted_rank_ic(config["source"]),
        accepted=read_provenance(run).get("accepted", []),
    )
    figures, net = lockbox_figures(judgement), table[table["model"] == "net"]
    look = Look(
        time=utc_now(),
        name=config["name"],
        run=path_from_ledger(ledger, run),
        config=config_hash(config),
        data_sha256=read_provenance(run)["data_sha256"],
        lockbox=share,
        rows=len(net),
        scored={name: figures[name] for name in _LOGGED},
        commit=commit(),
        tested=describe_rows(net),
    )
    before = Trials.read(ledger).same_rows(look)
    append_entry(ledger, look)
    span = {"first_bar": str(net["time"].iloc[0]), "last_bar": str(net["time"].iloc[-1])}
    logged = {"look": look.time, "looks_before": len(before.looks)}
    write_json(run / LOCKBOX, {**span, "rows": look.rows, **figures, **logged})
    return LockboxResult(judgement, describe_look(before, share=share))


def score_lockbox(bundle: Bundle, run: Path, *, share: float) -> pd.DataFrame:
    """Return the predictions table of the locked rows for the net and two baselines.

    Args:
        bundle: bundle of the run.
        run: the run folder.
        share: share of the labelled rows, at the end, that is locked.

    Raises:
        BundleError: the bars are not those of the run.
        SourceError: the bars cannot be read.
    """
    source, cache = (build(bundle.config, name) for name in ("source", "cache"))
    market = Market.read(source, features=bundle.features, target=bundle.label, cache=cache)
    trained_on = read_provenance(run)["data_sha256"]
    if market.bars.sha256 != trained_on:
        raise BundleError(
            f"the bars of {market.bars.origin} have sha256 {market.bars.sha256[:12]}, but {run} "
            f"was trained on {trained_on[:12]}: its lockbox is not in them. Restore the file"
        )
    examples, target = market.examples, bundle.target
    rows = locked_rows(examples, share=share)
    x = torch.from_numpy(bundle.inputs(examples).rows(rows))
    forecasts = {
        "net": mean_forecast(bundle.nets.scores(x)),
        "constant": Forecast.single(constant(rows, target)),
        "minus_last_return": Forecast.single(minus_last_return(examples, rows, target)),
    }
    return predictions_table(examples, rows, forecasts, target=target)


def locked_rows(examples: Examples, *, share: float) -> Int[np.ndarray, " locked"]:
    """Return the row numbers in the examples that the splits lock."""
    rows = np.flatnonzero(~np.isnan(examples.outcome))
    line = Timeline.from_rows(examples.time[rows], examples.label_end[rows], lockbox=share)
    return rows[line.end :]


def lockbox_figures(judgement: Judgement) -> dict[str, float | int | None]:
    """Return the figures of lockbox.json; null for those that could not be computed."""
    figures: dict[str, float | int | None] = {"dates": judgement.net.dates}
    for name, interval in judgement.net.intervals().items():
        figures |= interval_metrics(name, interval)
    for name, baseline in judgement.baselines.items():
        figures[f"baseline/{name}/rank_ic"] = baseline.rank_ic.estimate
        figures[f"baseline/{name}/skill"] = baseline.skill.estimate
    return null_for_nan(figures)


def describe_look(before: Trials, *, share: float) -> str:
    """Describe what earlier looks and trials mean for this look.

    Args:
        before: entries on these bars before this look.
        share: share of the rows that is locked.
    """
    looks, trials = before.looks, before.distinct()
    sentences = [f"Look {len(looks) + 1} at the lockbox, the last {share:g} of these bars."]
    if looks:
        earlier = _shorten([f"{look.run} ({look.time})" for look in looks])
        sentences.append(
            f"It was seen before by {earlier}. Choices made since the first look may depend on "
            "these rows, so they are no longer out of sample."
        )
    exposed = [trial.run for trial in trials if trial.split.get("lockbox", 0.0) < share]
    if exposed:
        sentences.append(
            f"{len(exposed)} of the {len(trials)} trials on these bars locked fewer rows and "
            f"scored some of these as val or test rows: {_shorten(exposed)}. For choices made by "
            "those runs, these rows are no longer out of sample."
        )
    if before.damaged:
        sentences.append(
            f"{before.path} has {len(before.damaged)} damaged lines, which may be looks too."
        )
    return " ".join(sentences)


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _locked_share(run: Path, config: Mapping[str, Any]) -> float:
    share = float(config["split"].get("lockbox", 0.0))
    if share <= 0:
        raise BundleError(
            f"{run} has no lockbox: split.lockbox={share:g}. Train with split.lockbox=0.1 to keep "
            "the last tenth of the rows out of every span"
        )
    return share
