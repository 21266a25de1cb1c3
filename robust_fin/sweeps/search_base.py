"""The settings that a search starts from: what it leaves as it is, and its defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from robust_fin.errors import ConfigError
from robust_fin.sweeps.search_space import OneOf, Space, Values, text_of
from robust_fin.trials.entries import config_hash

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
        return config_hash(self.config)

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
