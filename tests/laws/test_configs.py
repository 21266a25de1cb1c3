"""Every YAML builds what it names, and a setting that does nothing is an error."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.errors import (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
)
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from robust_fin.cli.composition import conf_folder
from robust_fin.data.cache import Cache
from robust_fin.data.splits import Split
from robust_fin.data.targets import ForwardReturn, TargetScale
from robust_fin.data.transforms import FeatureTransform
from robust_fin.evaluation.breakdowns import Instrument
from robust_fin.features.registry import FeatureSet
from robust_fin.market.sources import BarSource, Spikes
from robust_fin.runtime.devices import Hardware
from robust_fin.sweeps.local import Executor
from robust_fin.sweeps.strategy import Strategy
from robust_fin.training.baselines import Baselines
from tests.bars import config, instantiate

FILES = sorted(conf_folder().glob("*/*.yaml"))
CHOICES = [(path.parent.name, path.stem) for path in FILES if path.parent.name != "experiment"]
EXPERIMENTS = [path.stem for path in FILES if path.parent.name == "experiment"]
VERBS = sorted(path.stem for path in conf_folder().glob("*.yaml"))
# read by the code, nothing is built from them
SETTINGS_ONLY = {"checkpoint", "debug", "engine", "population", "stability"}
CALLS = {  # what the code calls a built part with, and what it then gets
    "baselines": (None, Baselines),
    "cache": (None, Cache),
    "instrument": (None, Instrument),
    "features": (None, FeatureSet),
    "source": (None, BarSource),
    "split": (None, Split),
    "target": (None, ForwardReturn),
    "target_scale": (None, TargetScale),
    "trainer": (None, L.Trainer),
    "hardware": (None, Hardware),
    "sweep": (None, Strategy),
    "executor": (None, Executor),
    "model": (None, torch.nn.Module),
    "logger": (None, Logger),
    "transform": ({"names": ["a", "b"]}, FeatureTransform),
    "link": ({}, torch.Tensor),
    "loss": ({}, torch.Tensor),
    "optimizer": ({}, torch.optim.Optimizer),
    "schedule": ({"total": 1000}, float),
}


def built(group: str, settings: DictConfig, folder: Path) -> object:
    """What the group's YAML makes, called as the code calls it."""
    given: dict[str, object] = {}
    if group == "model":
        given = {"features": 5}
    elif group == "logger":
        given = {"save_dir": folder, "name": "tensorboard", "version": ""}
    elif group == "trainer":
        given = {"default_root_dir": folder, "logger": False}
        if settings.accelerator == "gpu" and not torch.cuda.is_available():
            given["accelerator"] = "cpu"  # Lightning builds none for a device that is not there
    part = instantiate(settings, **given)
    words, _ = CALLS[group]
    if words is None:
        return part
    assert isinstance(part, partial)
    return part(*arguments(group), **words)


def arguments(group: str) -> tuple[object, ...]:
    draw = torch.Generator().manual_seed(0)
    row = torch.rand(64, generator=draw)
    return {
        "transform": (torch.rand(64, 2, generator=draw).double().numpy(),),
        "link": (row,),
        "loss": (row, 1 - row),
        "optimizer": ([torch.nn.Parameter(row)],),
        "schedule": (0,),
    }[group]


def test_every_group_is_looked_at() -> None:
    groups = {group for group, _ in CHOICES}
    assert groups == {*CALLS, *SETTINGS_ONLY, "callbacks", "stress"}
    assert {"top5", "study", "smoke"} <= set(EXPERIMENTS)


@pytest.mark.parametrize(("group", "choice"), [one for one in CHOICES if one[0] in CALLS])
def test_every_yaml_builds_what_it_names(group: str, choice: str, tmp_path: Path) -> None:
    settings = config(f"{group}={choice}")[group]
    assert isinstance(built(group, settings, tmp_path), CALLS[group][1])


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "callbacks"])
def test_every_callback_builds(choice: str) -> None:
    settings = config(f"callbacks={choice}").callbacks
    assert len(settings) >= 2
    assert all(isinstance(instantiate(one), L.Callback) for one in settings.values())


@pytest.mark.parametrize("word", ["+experiment=top5", "+experiment=study", "transform=robust"])
def test_a_stress_holds_whatever_is_chosen_beside_it(word: str) -> None:
    plain, usual = config(word), {"share": 0.001, "factor": 10.0, "seed": 0}
    assert config(word, "stress=none") == plain
    spiked = config("stress=spiked", word)
    assert instantiate(spiked.source).spikes == Spikes(**usual)
    assert spiked.transform == plain.transform
    unscaled = config("stress=unscaled", word)
    assert unscaled.transform == config("transform=identity").transform
    assert unscaled.source == plain.source
    assert {choice for group, choice in CHOICES if group == "stress"} == {
        "none",
        "spiked",
        "unscaled",
    }


@pytest.mark.parametrize(
    ("group", "choice"), [one for one in CHOICES if one[0] in SETTINGS_ONLY | {"model", "trainer"}]
)
def test_settings_are_all_filled_in(group: str, choice: str) -> None:
    settings = config(f"{group}={choice}")[group]
    assert len(settings) >= 1
    assert OmegaConf.missing_keys(settings) == set()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds_under_its_own_name(experiment: str, tmp_path: Path) -> None:
    settings = config(f"+experiment={experiment}")
    assert settings.name == experiment
    assert OmegaConf.missing_keys(settings) == set()
    for group in CALLS:
        assert isinstance(built(group, settings[group], tmp_path), CALLS[group][1])


@pytest.mark.parametrize(
    ("verb", "required"),
    [
        ("doctor", set()),
        ("evaluate", {"run"}),
        ("replay", {"record"}),
        ("select", set()),
        ("predict", {"run", "out"}),
        ("leakcheck", set()),
        ("train", set()),
    ],
)
def test_every_verb_composes_and_names_what_it_needs(verb: str, required: set[str]) -> None:
    assert verb in VERBS
    assert OmegaConf.missing_keys(config(verb=verb)) == required


def test_no_verb_is_left_out() -> None:
    assert VERBS == ["doctor", "evaluate", "leakcheck", "predict", "replay", "select", "train"]


@pytest.mark.parametrize("key", [*sorted(CALLS), *sorted(SETTINGS_ONLY)])
def test_an_unknown_key_of_a_group_is_an_error(key: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        config(f"{key}.does_nothing=1")
    assert "Could not override" in str(caught.value)
    assert f"'{key}.does_nothing'" in str(caught.value)


@pytest.mark.parametrize(
    "word", ["model.use_residual=true", "loss.gamma=1", "use_mixed_precision=1"]
)
def test_the_keys_people_try_are_errors(word: str) -> None:
    with pytest.raises(ConfigCompositionException, match="Could not override"):
        config(word)


@pytest.mark.parametrize(
    "group",
    ["features", "source", "split", "target", "trainer", "hardware", "model", "transform", "loss"],
)
def test_a_key_forced_in_with_a_plus_is_refused_by_the_constructor(
    group: str, tmp_path: Path
) -> None:
    settings = config(f"+{group}.does_nothing=1")[group]
    with pytest.raises((InstantiationException, TypeError), match="does_nothing"):
        built(group, settings, tmp_path)


@pytest.mark.parametrize("group", sorted({group for group, _ in CHOICES}))
def test_an_unknown_choice_is_an_error_that_lists_the_known(group: str) -> None:
    known = [choice for name, choice in CHOICES if name == group]
    with pytest.raises(MissingConfigException, match=f"'{group}/no_such_choice'") as caught:
        config(f"{group}=no_such_choice")
    assert all(choice in str(caught.value) for choice in known)


def test_an_unknown_experiment_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(MissingConfigException, match="'experiment/no_such_study'") as caught:
        config("+experiment=no_such_study")
    assert all(name in str(caught.value) for name in EXPERIMENTS)
