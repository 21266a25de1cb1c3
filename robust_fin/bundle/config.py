"""The config of a run as read from disk: plain values that name no code but ours.

A run folder may come from anyone. Its config builds only the constructors listed here, each at its
own key; a user's own modules are used only if the caller names them.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robust_fin.errors import BundleError
from robust_fin.runtime.records import plain_yaml

BUNDLE = "bundle"
_MODULES = ("features.modules",)  # keys that list modules to import
_LIST_ITEM = re.compile(r"\[\d+\]")
_MODULE_NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
_HYDRA_KEYS = ("hydra.sweep.", "hydra.sweeper.params", "hydra.run.dir", "hydra.mode")

# every constructor that conf/ names, by its key; `*` stands for any name or item
CONSTRUCTORS: Mapping[str, Collection[str]] = {
    "baselines": ("robust_fin.training.baselines.Baselines",),
    "baselines.lightgbm": ("robust_fin.training.baselines.GradientBoosting",),
    "cache": ("robust_fin.data.cache.Cache",),
    "callbacks.*": (
        "lightning.pytorch.callbacks.EarlyStopping",
        "robust_fin.training.assembly.FitProgress",
        "robust_fin.training.diagnostics.Histograms",
    ),
    "debug.check": (
        "robust_fin.runs.debugging.Anomaly",
        "robust_fin.runs.debugging.OneStepCheck",
        "robust_fin.runs.debugging.OverfitBatch",
        "robust_fin.runs.debugging.ProfileCheck",
    ),
    "features": ("robust_fin.features.registry.FeatureSet.of",),
    "hardware": ("robust_fin.runtime.devices.Hardware",),
    "instrument": ("robust_fin.evaluation.breakdowns.Instrument",),
    "link": ("robust_fin.models.mlp.identity", "robust_fin.models.mlp.sigmoid"),
    "logger": ("robust_fin.training.assembly.StepTensorBoardLogger",),
    "loss": (
        "robust_fin.training.losses.absolute",
        "robust_fin.training.losses.huber",
        "robust_fin.training.losses.squared",
    ),
    "model": ("robust_fin.models.mlp.PreNormMLP", "robust_fin.models.mlp.ResidualMLP"),
    "optimizer": ("torch.optim.AdamW",),
    "schedule": (
        "robust_fin.training.losses.warmup_constant",
        "robust_fin.training.losses.warmup_cosine",
        "robust_fin.training.losses.warmup_linear",
    ),
    "source": ("robust_fin.market.sources.BarSource",),
    "source.spikes": ("robust_fin.market.synthetic.Spikes",),
    "source.synthetic": ("robust_fin.market.synthetic.synthetic_market",),
    "split": (
        "robust_fin.data.splits.Holdout",
        "robust_fin.data.time_series_folds.Cpcv",
        "robust_fin.data.time_series_folds.PurgedKFold",
        "robust_fin.data.time_series_folds.WalkForward",
    ),
    "target": ("robust_fin.data.targets.ForwardReturn",),
    "target_scale": (
        "robust_fin.data.targets.RankScale",
        "robust_fin.data.targets.ReturnScale",
    ),
    "trainer": ("lightning.Trainer",),
    "transform": ("robust_fin.data.transforms.FeatureTransform.fit",),
    "transform.steps.*": (
        "robust_fin.data.transforms.QuantileNormal.fit",
        "robust_fin.data.transforms.RobustScaler.fit",
        "robust_fin.data.transforms.SmoothClip.fit",
    ),
}


def read_config(run: Path) -> DictConfig:
    """Read the config of a run; nothing is built or imported.

    Raises:
        BundleError: `run` is not a run folder, or the file is damaged.
    """
    path = run / BUNDLE / "config.yaml"
    if not path.is_file():
        raise BundleError(
            f"{run} is not a run folder: it has no {BUNDLE}/config.yaml. Give the folder that "
            "robust_fin.train printed, such as outputs/top5/2024-12-19_10-00-00"
        )
    return parse_config(path.read_bytes(), origin=str(path))


def parse_config(text: bytes | str, *, origin: str) -> DictConfig:
    """Parse a config that was written resolved.

    Args:
        text: YAML.
        origin: names the file in messages.

    Raises:
        BundleError: it is not plain YAML: too large, nested too deeply, with aliases, or with
            interpolations.
    """
    try:
        config = OmegaConf.create(plain_yaml(text))
        values = OmegaConf.to_container(config)  # unresolved
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise BundleError(f"{origin} is damaged, it cannot be read as YAML: {error}") from error
    if not isinstance(config, DictConfig) or not values:
        raise BundleError(f"{origin} is damaged: it holds no settings")
    for key, value in _leaves(values):
        if isinstance(value, str) and "${" in value:
            raise BundleError(
                f"{origin}: {key}={value} is an interpolation, but the config of a run is written "
                "with every value resolved. The file was changed"
            )
    return config


def check_constructors(
    config: DictConfig, key: str = "", *, modules: Collection[str] = (), origin: str = "the run"
) -> None:
    """Check that a config names only our constructors, each at its key, or the caller's modules.

    Args:
        config: read from a file.
        key: the part to check, such as model; "" checks all.
        modules: modules of the user that the file may name.
        origin: names the file in the message.

    Raises:
        BundleError: another constructor or module is named.
    """
    node = OmegaConf.select(config, key) if key else config
    if not OmegaConf.is_config(node):
        return
    for place, value in _leaves(OmegaConf.to_container(node), key):
        parent, _, name = place.rpartition(".")
        if name == "_target_" and not _is_registered(parent, str(value)):
            _check_named(place, str(value), str(value).rpartition(".")[0], modules, origin)
        elif _LIST_ITEM.sub("", place) in _MODULES and value:
            _check_named(place, str(value), str(value), modules, origin)


def build(
    config: DictConfig, key: str, *, modules: Collection[str] = (), **arguments: object
) -> Any:
    """Build a part of a config that was read from a file.

    Args:
        config: see `read_config`.
        key: the part, such as model.
        modules: modules of the user that the file may name.
        arguments: passed to the constructor in addition.

    Raises:
        BundleError: the part is missing, or names code that is neither ours nor in `modules`.
    """
    if not isinstance(OmegaConf.select(config, key), DictConfig):
        raise BundleError(f"the config of the run is damaged: {key} is not a group of keys")
    check_constructors(config, key, modules=modules)
    return instantiate(config[key], **arguments)


def check_words(words: Iterable[str], *, modules: Collection[str], origin: str) -> None:
    """Check that overrides read from a file name no code but ours and the caller's modules.

    Args:
        words: such as `model.dropout=0.1`.
        modules: modules of the user that the words may name.
        origin: names the file in the message.

    Raises:
        BundleError: a word names other code, sets a key of Hydra itself or interpolates.
    """
    ours = {target for targets in CONSTRUCTORS.values() for target in targets}
    for word in map(str, words):
        key, _, value = word.partition("=")
        key = key.lstrip("+~")
        if (key.startswith("hydra") and not key.startswith(_HYDRA_KEYS)) or "${" in value:
            raise BundleError(
                f"{word} in {origin} is an override that a recorded command may not have. Start "
                "the command again, with the word on the command line"
            )
        if "_target_" in word or key.rpartition(".")[2] == "modules":
            for name in set(_MODULE_NAME.findall(value)) - {"_target_"}:
                module = name.rpartition(".")[0] if "_target_" in word else name
                if name not in ours:
                    _check_named(key, name, module, modules, origin)


def _is_registered(key: str, target: str) -> bool:
    parts = _LIST_ITEM.sub(".*", key).split(".")
    general = (".".join(parts), ".".join([*parts[:-1], "*"]))
    return any(target in CONSTRUCTORS.get(name, ()) for name in general)


def _check_named(key: str, value: str, module: str, modules: Collection[str], origin: str) -> None:
    if any(module == named or module.startswith(f"{named}.") for named in modules):
        return
    raise BundleError(
        f"{key}={value} in {origin} names code that is not part of robust_fin. A file is not "
        f"trusted to do so; if the code is yours, add modules=[{module}] to the command"
    )


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is no container, with its key such as `transform.steps[0].low`."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for at, value in enumerate(node):
            yield from _leaves(value, f"{key}[{at}]")
    else:
        yield key, node


def planted_rank_ic(source: Mapping[str, Any]) -> float:
    """Return the rank IC planted in the synthetic bars of a `source`; 0 for the bars of a market.

    Args:
        source: settings of the source in a run's config.
    """
    synthetic = source.get("synthetic")
    if synthetic is None or source.get("path") is not None:
        return 0.0
    return abs(float(synthetic.get("signal", 0.0)))


def read_plain_config(run: Path) -> dict[str, Any]:
    """Read the config of a run as nested dictionaries and lists, every value resolved."""
    config = OmegaConf.to_container(read_config(run), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def read_flat_config(run: Path) -> dict[str, Any]:
    """Read the config of a run as values by dotted key, such as `optimizer.lr`."""
    return flatten_config(read_config(run))


def flatten_config(config: DictConfig) -> dict[str, Any]:
    """Return the resolved values of a config by dotted key."""
    return _flat(OmegaConf.to_container(config, resolve=True), "")


def _flat(node: Any, key: str) -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {key: node}
    below = [_flat(value, f"{key}.{name}" if key else str(name)) for name, value in node.items()]
    return {name: value for part in below for name, value in part.items()}
