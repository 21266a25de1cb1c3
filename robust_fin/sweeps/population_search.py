"""The rows of a population in a sweep's table, one a member, from its members.json."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from hydra.core.override_parser.types import Override

from robust_fin.errors import ConfigError
from robust_fin.runs.results import MEMBERS
from robust_fin.sweeps.search_space import MEMBER_KEYS, Settings, combinations, points, read_space
from robust_fin.sweeps.strategy import FAILED, FINISHED, STOPPED, Figure, Outcome, Row, Trial

_SPANS = ("val/", "test/")
# figures of a job that are those of each of its members
_OF_ALL = (
    "parameters", "rows", "train_rows", "val_rows", "test_rows", "fit_rows", "folds",
    "train/outcome_excess_kurtosis", "train/objective_trivial",
)  # fmt: skip


def member_rows(outcome: Outcome, members: Sequence[Mapping[str, str]]) -> list[Row]:
    """A row a member, as the table of a grid has one a job.

    Args:
        outcome: of the job.
        members: what each member's own settings are, by key.
    """
    entries = _entries(outcome.folder, len(members)) if outcome.state == FINISHED else None
    shared = {
        key: value
        for key, value in outcome.trial.settings.items()
        if not key.startswith("population.")
    }
    rows = []
    for number, own in enumerate(members):
        state, reason, metrics = outcome.state, outcome.reason, dict[str, Figure]()
        if entries is not None:
            metrics = {k: outcome.metrics[k] for k in _OF_ALL if k in outcome.metrics}
            metrics |= _figures(entries[number])
            state, reason = _fate(entries[number])
        rows.append(
            Row(
                number=outcome.trial.number,
                member=number,
                state=state,
                reason=reason,
                settings={**shared, **own},
                overrides=" ".join(outcome.trial.overrides),
                metrics=metrics,
                seconds=outcome.seconds,
                folder=outcome.folder,
            )
        )
    return rows


def _entries(run: Path, members: int) -> list[list[dict[str, Any]]]:
    """What members.json says of each member, fold by fold."""
    content = json.loads((run / MEMBERS).read_text(encoding="utf-8"))["members"]
    return [content[number::members] for number in range(members)]


def _figures(folds: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Means over the folds; null where one of them has none."""
    names = dict.fromkeys(name for one in folds for name in one if name.startswith(_SPANS))
    found: dict[str, Figure] = {}
    for name in names:
        values = [one[name] for one in folds if one.get(name) is not None]
        found[name] = float(np.mean(values)) if len(values) == len(folds) else None
    found["train/gradient_norm_max"] = max(
        (one["gradient_norm_max"] for one in folds if one["gradient_norm_max"] is not None),
        default=None,
    )
    return found


def _fate(folds: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    frozen = [one for one in folds if one["frozen_at"] is not None]
    if not frozen:
        return FINISHED, None
    fold = f" of fold {frozen[0]['fold']}" if len(folds) > 1 else ""
    return FAILED, (
        f"frozen at step {frozen[0]['frozen_at']}{fold}: a loss, gradient or weight is not finite"
    )


_SEED = "seed"


class PopulationSearch:
    """A grid, or a number of points, as populations: a job for each architecture.

    Learning rate, weight decay, Huber delta, dropout and seed are what members differ in; every
    other swept key makes one job a value. A member has the numbers of the single run with its
    settings: with engine=compiled bit for bit, but for the last digits where dropout is swept.

    Args:
        workers: jobs that run at a time.
        trials: None takes every combination; else so many points of a Sobol sequence.
        space: of the points, beside what the command line sweeps.
        seed: of the points.
    """

    def __init__(
        self, *, workers: int, trials: int | None, space: Mapping[str, Any] | None, seed: int
    ) -> None:
        """Keep the settings."""
        if trials is not None and trials < 1:
            raise ConfigError(f"sweep.trials={trials} must be a whole number above 0, or null")
        if space and trials is None:
            raise ConfigError("sweep.space needs a number of points; set sweep.trials")
        self.workers, self._count, self._given, self._seed = workers, trials, space or {}, seed
        self._members: list[Settings] = []
        self._left: list[Trial] = []

    def plan(self, words: Sequence[Override], *, folder: Path, done: Mapping[int, Outcome]) -> int:
        """See `Strategy.plan`."""
        del folder
        swept = [word for word in words if word.is_sweep_override()]
        fixed = [str(word.input_line) for word in words if not word.is_sweep_override()]
        own = [word for word in swept if word.get_key_element() in MEMBER_KEYS]
        others = [word for word in swept if word.get_key_element() not in MEMBER_KEYS]
        self._members = self._settings_of_members(own)
        jobs = list(self._jobs(fixed, combinations(others)))
        self._left = [
            one for one in jobs if one.number not in done or done[one.number].state == STOPPED
        ]
        return len(jobs)

    def ask(self) -> Trial | None:
        """See `Strategy.ask`."""
        return self._left.pop(0) if self._left else None

    def tell(self, outcome: Outcome) -> None:
        """Nothing is learnt from it."""

    def rows(self, outcome: Outcome) -> Sequence[Row]:
        """A row a member, as if each had been a job."""
        return member_rows(outcome, self._members)

    def default_job(self) -> int | None:
        """None: what is listed need not hold the settings as they are."""
        return None

    def _settings_of_members(self, own: Sequence[Override]) -> list[Settings]:
        if self._count is None:
            found = combinations(own)
        else:
            space = read_space(self._given, own)
            strangers = sorted(set(space) - set(MEMBER_KEYS))
            if strangers:
                raise ConfigError(
                    f"sweep.space.{strangers[0]} is nothing that members can differ in; those are "
                    f"{', '.join(MEMBER_KEYS)}. Sweep it on the command line, a job a value"
                )
            found = points(space, self._count, seed=self._seed)
        if not found or not found[0]:
            raise ConfigError(
                "sweep=population has nothing that members could differ in. Sweep one of "
                f"{', '.join(MEMBER_KEYS)}, such as optimizer.lr=0.001,0.003,0.01"
            )
        return found

    def _jobs(self, fixed: Sequence[str], others: Sequence[Settings]) -> Iterator[Trial]:
        for number, settings in enumerate(others):
            words = (*fixed, *(f"{key}={value}" for key, value in settings.items()))
            yield Trial(number, (*words, *self._population(words)))

    def _population(self, words: Sequence[str]) -> list[str]:
        """The members of a job, as words; without a list of seeds each would get one of its own."""
        config = compose("train", overrides=list(words))
        if config.population.members is not None:
            raise ConfigError(
                f"population.members={config.population.members} is what sweep=population sets "
                "itself; leave it at null, or take sweep=grid"
            )
        lists = {key: [one[key] for one in self._members] for key in self._members[0]}
        lists.setdefault(_SEED, [str(config.seed)] * len(self._members))
        return [f"population.members={len(self._members)}"] + [
            f"population.{MEMBER_KEYS[key]}=[{','.join(values)}]" for key, values in lists.items()
        ]
