"""The settings that a search starts from: what it leaves as it is, and its defaults."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from robust_fin.errors import ConfigError
from robust_fin.ledger.trials import config_hash
from robust_fin.runs.settings import plain_values
from robust_fin.sweeps.search_space import OneOf, Space, Values, read_space, text_of
from robust_fin.sweeps.strategy import FINISHED, PRUNED, STOPPED, Outcome, Row, Trial, one_row
from robust_fin.sweeps.study import COMPLETE, FAIL, PRUNE, Sampling, SharedStudy
from robust_fin.training.pruning import PRUNING_METRIC

log = logging.getLogger(__name__)

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class SearchBase:
    """The config of a job in which nothing is searched.

    Attributes:
        config: as composed.
        choices: of each config group.
    """

    config: DictConfig
    choices: Mapping[str, str]

    @classmethod
    def composed(cls, fixed: Sequence[str], *, space: Space) -> "SearchBase":
        """Compose what all jobs share, and one of them, so that a key nobody knows ends it here.

        Args:
            fixed: words that are the same in all jobs.
            space: what is searched.

        Raises:
            ConfigError: there is no val span to search by.
        """
        config = compose("train", overrides=list(fixed), return_hydra_config=True)
        some = [f"{key}={_first(values)}" for key, values in space.items()]
        compose("train", overrides=[*fixed, *some])
        choices = OmegaConf.to_container(config.hydra.runtime.choices)
        assert isinstance(choices, dict)
        with open_dict(config):
            for name in ("hydra", "sweep"):
                config.pop(name, None)
        found = cls(config, {str(key): str(value) for key, value in choices.items()})
        found._check_val()
        return found

    @property
    def hash(self) -> str:
        """Of the settings that a result depends on."""
        return config_hash(plain_values(self.config))

    @property
    def has_many_nets(self) -> bool:
        """Whether a job trains a population, or a net a fold."""
        several = not self.config.split["_target_"].endswith(".Holdout")
        return several or self.config.population.members is not None

    def default(self, space: Space) -> dict[str, object]:
        """The values of the searched keys without a search, as a trial has them.

        Raises:
            ConfigError: one lies outside the space, so the default settings cannot be a trial.
        """
        found: dict[str, object] = {}
        for key, values in space.items():
            value = self.choices.get(key, _ABSENT)
            if value is _ABSENT:
                value = OmegaConf.select(self.config, key.lstrip("+"), default=_ABSENT)
            if value is _ABSENT or not values.holds(value):
                said = "is not set" if value is _ABSENT else f"is {text_of(value)}"
                raise ConfigError(
                    f"by default {key} {said}, which the search has not among {_said(values)}: the "
                    "default settings cannot be its first trial. Make room for it, or leave it out "
                    "with sweep.try_default=false"
                )
            found[key] = values.suggested(value)
        return found

    def _check_val(self) -> None:
        if not self.config.split.val_fraction:
            raise ConfigError(
                f"sweep=optuna searches by val/skill, and split.val_fraction="
                f"{self.config.split.val_fraction} leaves no val span; write "
                "split.val_fraction=0.1"
            )


def _first(values: Values) -> str:
    return values.choices[0] if isinstance(values, OneOf) else text_of(values.low)


def _said(values: Values) -> str:
    if isinstance(values, OneOf):
        return ", ".join(values.choices)
    return f"the numbers from {values.low} to {values.high}"


JOURNAL = "study.journal"


class OptunaSearch:
    """Asks an Optuna study what to try next, and tells it val/skill, which it maximises.

    Args:
        trials: of the study in all, of whichever command; those lost to a kill are not counted.
        workers: jobs of this command that run at a time.
        space: config keys and their values; see `robust_fin.sweeps.search_space`. What the command
            line sweeps is searched beside it.
        try_default: the first trial has the settings as they are without a search.
        seed: of the sampler.
        study: its name in the journal.
        storage: the journal's file, to be shared by several commands; None takes one in the
            sweep's folder.
        sampler: what chooses, as in YAML, without its seed.
        pruner: what ends trials early, as in YAML; None ends none. Populations and several folds
            always train to their end.
    """

    def __init__(
        self,
        *,
        trials: int,
        workers: int,
        space: Mapping[str, Any] | None,
        try_default: bool,
        seed: int,
        study: str,
        storage: str | None,
        sampler: dict[str, Any],
        pruner: dict[str, Any] | None,
    ) -> None:
        """Keep the settings; the study is opened by `plan`."""
        if trials < 1:
            raise ConfigError(f"sweep.trials={trials} must be a whole number above 0")
        self.trials, self.workers, self.try_default = trials, workers, try_default
        self._given, self._name, self._storage = space or {}, study, storage
        self._sampling = Sampling(sampler, seed, pruner)
        self._space: Space = {}
        self._fixed: tuple[str, ...] = ()
        self._default: dict[str, object] | None = None
        self._stopped: list[Trial] = []  # to go on with, before anything is tried
        self._taken: set[int] = set()  # numbers of jobs

    def plan(
        self, words: Sequence[Override], *, folder: Path, done: Mapping[int, Outcome]
    ) -> int | None:
        """See `Strategy.plan`."""
        swept = [word for word in words if word.is_sweep_override()]
        fixed = [word for word in words if not (word.is_sweep_override() or _is_ours(word))]
        self._space = _without(read_space(self._given, swept), fixed)
        self._fixed = tuple(str(word.input_line) for word in fixed)
        base = SearchBase.composed(self._fixed, space=self._space)
        self._default = base.default(self._space) if self.try_default else None
        self._say_what_holds(base)
        self.study = SharedStudy.opened(
            self._journal(folder),
            self._name,
            folder=folder,
            space=self._space,
            settings=base.hash,
            sampling=self._sampling,
        )
        self._take_in(done)
        return self.trials if self._storage is None else None

    def ask(self) -> Trial | None:
        """See `Strategy.ask`."""
        if self._stopped:
            return self._stopped.pop(0)
        job = next(number for number in range(len(self._taken) + 1) if number not in self._taken)
        found = self.study.ask(job, trials=self.trials, default=self._default)
        if found is None:
            return None
        self._taken.add(job)
        words = tuple(f"{key}={value}" for key, value in found.items())
        return Trial(job, self._fixed + words, self.study.environment(job))

    def tell(self, outcome: Outcome) -> None:
        """See `Strategy.tell`; a figure that is no number is a failure, and the study goes on."""
        job, reason = outcome.trial.number, outcome.reason
        skill = outcome.metrics.get(PRUNING_METRIC)
        if outcome.state == STOPPED:
            return  # it can go on, so the study waits for it
        if outcome.state == PRUNED:
            self.study.tell(job, PRUNE, reason=reason)
        elif outcome.state == FINISHED and skill is not None and math.isfinite(skill):
            self.study.tell(job, COMPLETE, value=float(skill))
        else:
            self.study.tell(job, FAIL, reason=reason or f"{PRUNING_METRIC} is {skill}")

    def rows(self, outcome: Outcome) -> Sequence[Row]:
        """See `Strategy.rows`."""
        return one_row(outcome)

    def default_job(self) -> int | None:
        """See `Strategy.default_job`."""
        return self.study.default_job() if self.try_default else None

    def _journal(self, folder: Path) -> Path:
        if self._storage is None:
            return folder.absolute() / JOURNAL
        return Path(self._storage).expanduser().absolute()

    def _take_in(self, done: Mapping[int, Outcome]) -> None:
        """Go on with what was stopped, and tell what the study was not told before a kill."""
        self._taken = set(done)
        for number, one in sorted(done.items()):
            if one.state == STOPPED:
                link = self.study.environment(number)
                self._stopped.append(Trial(number, one.trial.overrides, link))
        for number in self.study.unfinished():
            if number in done:
                self.tell(done[number])
            else:
                self.study.lose(number)
        for number in set(self.study.jobs()) - set(done):
            self.study.do_again(number)

    def _say_what_holds(self, base: SearchBase) -> None:
        if self._sampling.pruner is not None and base.has_many_nets:
            log.info("a population, or several folds, is not pruned: its trials train to their end")
        if self._default is None:
            log.info("the default settings are not tried, so the best may be worse than they are")


def _is_ours(word: Override) -> bool:
    """Whether a word chooses sampler or pruner, which no job knows of."""
    return word.key_or_group.startswith("sweep/")


def _without(space: Space, fixed: Sequence[Override]) -> Space:
    """What is left to search: a key that the command line sets is not searched."""
    given = {word.get_key_element().lstrip("+") for word in fixed}
    left = {key: values for key, values in space.items() if key.lstrip("+") not in given}
    if not left:
        raise ConfigError(
            "sweep=optuna has nothing to search. Name keys and their values in sweep.space, or on "
            "the command line: 'optimizer.lr=tag(log,interval(0.0003,0.03))'"
        )
    return left
