"""Every YAML builds its class, and a key that has no effect raises."""

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
from robust_fin.market.sources import BarSource
from robust_fin.market.synthetic import Spikes
from robust_fin.runtime.devices import Hardware
from robust_fin.sweeps.executors import Executor
from robust_fin.sweeps.strategy import Strategy
from robust_fin.training.baselines import Baselines
from tests.bars import config, instantiate
from tests.for_every import for_every

FILES = sorted(conf_folder().glob("*/*.yaml"))
CHOICES = [(path.parent.name, path.stem) for path in FILES if path.parent.name != "experiment"]
EXPERIMENTS = [path.stem for path in FILES if path.parent.name == "experiment"]
COMMANDS = sorted(path.stem for path in conf_folder().glob("*.yaml"))
# read by the code; nothing is instantiated from them
SETTINGS_ONLY = {"checkpoint", "debug", "engine", "population", "stability"}
CALLS = {  # arguments of the call after instantiation (None: no call), and the type of the result
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
    """Instantiate the YAML of a group and call it as the code does."""
    given: dict[str, object] = {}
    if group == "model":
        given = {"features": 5}
    elif group == "logger":
        given = {"save_dir": folder, "name": "tensorboard", "version": ""}
    elif group == "trainer":
        given = {"default_root_dir": folder, "logger": False}
        if settings.accelerator == "gpu" and not torch.cuda.is_available():
            given["accelerator"] = "cpu"  # Lightning raises if there is no GPU
    part = instantiate(settings, **given)
    keywords, _ = CALLS[group]
    if keywords is None:
        return part
    assert isinstance(part, partial)
    return part(*arguments(group), **keywords)


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


def test_every_config_group_is_tested() -> None:
    groups = {group for group, _ in CHOICES}
    assert groups == {*CALLS, *SETTINGS_ONLY, "callbacks", "stress"}
    assert {"top5", "study", "smoke"} <= set(EXPERIMENTS)


@for_every("group, choice", [one for one in CHOICES if one[0] in CALLS])
def test_every_yaml_builds_its_class(group: str, choice: str, tmp_path: Path) -> None:
    settings = config(f"{group}={choice}")[group]
    assert isinstance(built(group, settings, tmp_path), CALLS[group][1])


@for_every("choice", [choice for group, choice in CHOICES if group == "callbacks"])
def test_every_callback_builds(choice: str) -> None:
    settings = config(f"callbacks={choice}").callbacks
    assert len(settings) >= 2
    assert all(isinstance(instantiate(one), L.Callback) for one in settings.values())


@for_every("override", ["+experiment=top5", "+experiment=study", "transform=robust"])
def test_stress_applies_with_other_choices(override: str) -> None:
    plain, expected = config(override), {"share": 0.001, "factor": 10.0, "seed": 0}
    assert config(override, "stress=none") == plain
    spiked = config("stress=spiked", override)
    assert instantiate(spiked.source).spikes == Spikes(**expected)
    assert spiked.transform == plain.transform
    unscaled = config("stress=unscaled", override)
    assert unscaled.transform == config("transform=identity").transform
    assert unscaled.source == plain.source
    assert {choice for group, choice in CHOICES if group == "stress"} == {
        "none",
        "spiked",
        "unscaled",
    }


@for_every(
    "group, choice", [one for one in CHOICES if one[0] in SETTINGS_ONLY | {"model", "trainer"}]
)
def test_settings_have_no_missing_keys(group: str, choice: str) -> None:
    settings = config(f"{group}={choice}")[group]
    assert len(settings) >= 1
    assert OmegaConf.missing_keys(settings) == set()


@for_every("experiment", EXPERIMENTS)
def test_every_experiment_builds_and_has_its_name(experiment: str, tmp_path: Path) -> None:
    settings = config(f"+experiment={experiment}")
    assert settings.name == experiment
    assert OmegaConf.missing_keys(settings) == set()
    for group in CALLS:
        assert isinstance(built(group, settings[group], tmp_path), CALLS[group][1])


@for_every(
    "verb, required",
    [
        ("doctor", set()),
        ("evaluate", {"run"}),
        ("replay", {"record"}),
        ("select", set()),
        ("predict", {"run", "out"}),
        ("inspect", set()),
        ("leakcheck", set()),
        ("train", set()),
    ],
)
def test_every_command_composes_with_its_required_keys(verb: str, required: set[str]) -> None:
    assert verb in COMMANDS
    assert OmegaConf.missing_keys(config(command=verb)) == required


def test_every_command_is_tested() -> None:
    assert COMMANDS == [
        "doctor",
        "evaluate",
        "inspect",
        "leakcheck",
        "predict",
        "replay",
        "select",
        "train",
    ]


@for_every("key", [*sorted(CALLS), *sorted(SETTINGS_ONLY)])
def test_unknown_key_of_a_group_raises(key: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        config(f"{key}.does_nothing=1")
    assert "Could not override" in str(caught.value)
    assert f"'{key}.does_nothing'" in str(caught.value)


@for_every("override", ["model.use_residual=true", "loss.gamma=1", "use_mixed_precision=1"])
def test_common_wrong_keys_raise(override: str) -> None:
    with pytest.raises(ConfigCompositionException, match="Could not override"):
        config(override)


@for_every(
    "group",
    ["features", "source", "split", "target", "trainer", "hardware", "model", "transform", "loss"],
)
def test_unknown_key_added_with_a_plus_raises_in_the_constructor(
    group: str, tmp_path: Path
) -> None:
    settings = config(f"+{group}.does_nothing=1")[group]
    with pytest.raises((InstantiationException, TypeError), match="does_nothing"):
        built(group, settings, tmp_path)


@for_every("group", sorted({group for group, _ in CHOICES}))
def test_unknown_choice_raises_with_the_known_choices(group: str) -> None:
    known = [choice for name, choice in CHOICES if name == group]
    with pytest.raises(MissingConfigException, match=f"'{group}/no_such_choice'") as caught:
        config(f"{group}=no_such_choice")
    assert all(choice in str(caught.value) for choice in known)


def test_unknown_experiment_raises_with_the_known_experiments() -> None:
    with pytest.raises(MissingConfigException, match="'experiment/no_such_study'") as caught:
        config("+experiment=no_such_study")
    assert all(name in str(caught.value) for name in EXPERIMENTS)
