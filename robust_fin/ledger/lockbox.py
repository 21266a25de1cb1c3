"""The lockbox: rows that no span of a run contains, scored when asked for, and every look counted.

The rows are worth something only as long as nothing is chosen by them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from jaxtyping import Int

from robust_fin.bundle.folder import (
    Bundle,
    commit,
    load_bundle,
    read_plain_config,
    read_provenance,
)
from robust_fin.bundle.predictions import Forecast, mean_forecast, predictions_table
from robust_fin.data.examples import Examples
from robust_fin.data.folds import Market
from robust_fin.data.splits import Timeline
from robust_fin.errors import BundleError, ConfigError
from robust_fin.evaluation.significance import Judgement, interval_metrics, judge
from robust_fin.ledger.record import find_ledger, now, seen_from
from robust_fin.ledger.trials import Look, Trials, append, config_hash
from robust_fin.runtime.atomic_files import null_for_nan, write_atomic
from robust_fin.training.baselines import constant, minus_last_return

LOCKBOX = "lockbox.json"
_SHOWN = 5  # runs in a message
_LOGGED = ("skill", "skill_low", "skill_high", "rank_ic", "rank_ic_low", "rank_ic_high")


@dataclass(frozen=True, slots=True)
class LockboxResult:
    """What a look shows.

    Attributes:
        judgement: of the net on the locked rows.
        figures: by name, as lockbox.json has them.
        words: how often these rows were looked at before.
    """

    judgement: Judgement
    figures: Mapping[str, float | int | str | None]
    words: str


def open_lockbox(run: Path) -> LockboxResult:
    """Score the locked rows with a run's bundle; the look is logged before anything is shown.

    Nothing is fitted here: features, transform and target are those of the run's training rows.
    With several folds it is the net of the last one.

    Args:
        run: the folder of a finished run with split.lockbox above 0.

    Raises:
        BundleError: the run has no lockbox, has not finished, or the bars are not those it read.
        ConfigError: the look cannot be logged.
    """
    bundle = load_bundle(run)
    config = read_plain_config(run)
    share, ledger = _share(run, config), find_ledger(run)
    if ledger is None:
        raise ConfigError(
            f"{run} names no trial ledger to log the look in: it was made before there were "
            "ledgers. Train it again"
        )
    torch.set_num_threads(config["threads"])
    table = score_lockbox(bundle, run, share=share)
    instrument = config.get("instrument")
    found = judge(table, instrument=None if instrument is None else instantiate(instrument))
    figures, net = figures_of(found), table[table["model"] == "net"]
    own = Look(
        time=now(),
        name=config["name"],
        run=seen_from(ledger, run),
        config=config_hash(config),
        data_sha256=read_provenance(run)["data_sha256"],
        lockbox=share,
        rows=len(net),
        scored={name: figures[name] for name in _LOGGED},
        commit=commit(),
    )
    before = Trials.read(ledger).same_data(own.data_sha256)
    append(ledger, own)
    span = {"first_bar": str(net["time"].iloc[0]), "last_bar": str(net["time"].iloc[-1])}
    content: dict[str, float | int | str | None] = {**span, "rows": own.rows, **figures}
    content |= {"look": own.time, "looks_before": len(before.looks)}
    write_atomic(run / LOCKBOX, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return LockboxResult(found, content, look_words(before, share=share))


def score_lockbox(bundle: Bundle, run: Path, *, share: float) -> pd.DataFrame:
    """The predictions table of the locked rows: the net, the constant, minus the last return.

    Args:
        bundle: of the run.
        run: its folder, which says what the bars were.
        share: of the labelled rows, at the end, that is locked.

    Raises:
        BundleError: the bars are not those that the run read.
        SourceError: they cannot be read.
    """
    source, cache = (instantiate(bundle.config[name]) for name in ("source", "cache"))
    market = Market.read(source, features=bundle.features, target=bundle.label, cache=cache)
    then = read_provenance(run)["data_sha256"]
    if market.bars.sha256 != then:
        raise BundleError(
            f"the bars of {market.bars.origin} have sha256 {market.bars.sha256[:12]}, {run} was "
            f"trained on {then[:12]}: its lockbox is not in them. Put the file back"
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
    """Row numbers, among all examples, of those that the splits leave out as locked."""
    rows = np.flatnonzero(~np.isnan(examples.outcome))
    line = Timeline.from_rows(examples.time[rows], examples.label_end[rows], lockbox=share)
    return rows[line.end :]


def figures_of(found: Judgement) -> dict[str, float | int | None]:
    """What lockbox.json says of the locked rows; null where it could not be computed."""
    figures: dict[str, float | int | None] = {"dates": found.net.dates}
    for name, interval in found.net.intervals().items():
        figures |= interval_metrics(name, interval)
    for name, one in found.baselines.items():
        figures |= {f"baseline/{name}/rank_ic": one.rank_ic.estimate}
        figures |= {f"baseline/{name}/skill": one.skill.estimate}
    return null_for_nan(figures)


def look_words(before: Trials, *, share: float) -> str:
    """What earlier looks and trials do to this one.

    Args:
        before: what the ledger had on these bars before this look.
        share: of the rows that is locked.
    """
    looks = before.looks
    words = [f"Look {len(looks) + 1} at the lockbox, the last {share:g} of these bars."]
    if looks:
        seen = _listed([f"{one.run} ({one.time})" for one in looks])
        words.append(
            f"It was seen before by {seen}. Whatever was chosen since the first look may have been "
            "chosen by these rows: they are no longer out of sample."
        )
    open_to = [one for one in before.distinct() if one.split.get("lockbox", 0.0) < share]
    if open_to:
        words.append(
            f"{len(open_to)} of the {len(before.distinct())} trials on these bars locked fewer "
            f"rows and scored some of these in the open: {_listed([one.run for one in open_to])}. "
            "To whoever chose by them, these rows are no longer out of sample."
        )
    if before.damaged:
        words.append(
            f"{before.path} has {len(before.damaged)} damaged lines, which may be looks too."
        )
    return " ".join(words)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _share(run: Path, config: Mapping[str, Any]) -> float:
    share = float(config["split"].get("lockbox", 0.0))
    if share <= 0:
        raise BundleError(
            f"{run} has no lockbox: split.lockbox={share:g}. Train with split.lockbox=0.1 to keep "
            "the last tenth of the rows out of every span"
        )
    return share
