"""The bundle of a run: config, weights and fitted transforms, without pickle.

```
bundle/config.yaml             the resolved config, written when the run starts
bundle/model.safetensors       weights of the net; for a population with a leading member axis
bundle/transforms.safetensors  arrays: features/<position>/<kind>/<array>, target/<array>
bundle/transforms.json         names and units
bundle/provenance.json         data fingerprint, versions, commit
```
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml  # type: ignore[import-untyped]
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as arrays_as_bytes
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save as tensors_as_bytes
from torch import Tensor, nn

from robust_fin.bundle.predictions import Link, Nets, ToRank, mean_forecast, predictions_table
from robust_fin.data.cache import NO_CACHE, library_version
from robust_fin.data.examples import Examples, make_examples
from robust_fin.data.folds import Market
from robust_fin.data.inputs import Inputs
from robust_fin.data.targets import ForwardReturn, RankTarget
from robust_fin.data.transforms import FeatureTransform, arrays_below
from robust_fin.errors import BundleError
from robust_fin.features.registry import FeatureSet
from robust_fin.market.intake.continuity import format_length
from robust_fin.market.schema import BarSummary
from robust_fin.market.sources import Bars, BarSource
from robust_fin.runtime.files import write_atomic
from robust_fin.runtime.terminal import command_hint

BUNDLE = "bundle"
_VERSIONED = ("torch", "lightning", "numpy", "pandas", "scipy", "hydra-core", "robust-fin")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A fitted forecaster.

    Attributes:
        config: resolved config of the run.
        nets: nets with their weights.
        features: features in the order of the inputs.
        label: definition of the outcome.
        transform: fitted transform of the features.
        target: fitted rank target.
    """

    config: DictConfig
    nets: Nets
    features: FeatureSet
    label: ForwardReturn
    transform: FeatureTransform
    target: RankTarget

    def examples(self, bars: Bars) -> Examples:
        """Return the rows of `bars` that have all features."""
        return make_examples(bars, names=self.features.names, target=self.label)

    def inputs(self, examples: Examples) -> Inputs:
        """Return the rows of `examples` as the nets read them."""
        return Inputs.from_examples(examples, transform=self.transform)

    def predict(self, bars: Bars) -> pd.DataFrame:
        """Score every row that has all features.

        Returns:
            The predictions table. Target and outcome of the newest rows are null.
        """
        return self._scored(self.examples(bars))

    def predict_source(
        self, source: BarSource, *, trained_on: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score the bars of a source; with `block_rows` they are read block by block.

        Args:
            source: the new bars.
            trained_on: provenance of the run; None skips the comparison with it.

        Raises:
            BundleError: the bars have another length or product than those of the run, and
                `source.accept` names neither.
        """
        market = Market.read(source, features=self.features, target=self.label, cache=NO_CACHE)
        _check_same_market(source, market.bars, self.config.source.bar, trained_on or {})
        return self._scored(market.examples)

    def _scored(self, examples: Examples) -> pd.DataFrame:
        x = torch.from_numpy(self.inputs(examples).rows(slice(None)))
        forecast = mean_forecast(self.nets.scores(x))
        rows = np.arange(examples.time.size)
        return predictions_table(examples, rows, {"net": forecast}, target=self.target)


def _check_same_market(
    source: BarSource, bars: BarSummary, trained_bar: str, trained_on: Mapping[str, Any]
) -> None:
    """Raise BundleError for bars of another length or product than those of the run."""
    length, product = pd.Timedelta(trained_bar), bars.facts.get("product")
    if source.length != length and "bar" not in source.accept:
        raise BundleError(
            f"{bars.origin} has bars of {format_length(source.length)}, but the run was trained on "
            f"bars of {format_length(length)}. Give such bars, or write source.accept=[bar]"
        )
    trained = trained_on.get("product")
    if product and trained and product != trained and "products" not in source.accept:
        raise BundleError(
            f"{bars.origin} holds {product}, but the run was trained on {trained}. Give bars of "
            f"{trained}, or write source.accept=[products]"
        )


def write_config(run: Path, config: DictConfig) -> None:
    """Write the config before any slow step, so that a killed run can be resumed."""
    (run / BUNDLE).mkdir(parents=True, exist_ok=True)
    text = OmegaConf.to_yaml(config, resolve=True)
    write_atomic(run / BUNDLE / "config.yaml", text.encode())


def start_bundle(run: Path, config: DictConfig, *, bars: BarSummary) -> None:
    """Write config and provenance before training."""
    write_config(run, config)
    _write_json(run / BUNDLE / "provenance.json", provenance(bars))


def finish_bundle(
    run: Path, *, nets: Nets, transform: FeatureTransform, target: RankTarget, names: FeatureSet
) -> None:
    """Write weights and fitted transforms."""
    folder = run / BUNDLE
    own = nets.net.state_dict()
    weights = own if nets.stack is None else {name: nets.stack[name] for name in own}
    kept = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_atomic(folder / "model.safetensors", tensors_as_bytes(kept))
    arrays = {f"features/{name}": value for name, value in transform.arrays().items()}
    arrays |= {f"target/{name}": value for name, value in target.arrays().items()}
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    write_atomic(folder / "transforms.safetensors", arrays_as_bytes(arrays))
    described = {
        "features": names.units,
        "target": {"forward_return": "fraction -> rank in [0, 1]"},
    }
    _write_json(folder / "transforms.json", described)


def read_config(run: Path) -> DictConfig:
    """Read the config of a run.

    Raises:
        BundleError: `run` is not a run folder.
    """
    path = run / BUNDLE / "config.yaml"
    if not path.is_file():
        raise BundleError(
            f"{run} is not a run folder: it has no {BUNDLE}/config.yaml. Give the folder that "
            "robust_fin.train printed, such as outputs/top5/2024-12-19_10-00-00"
        )
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is damaged, it cannot be read as YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise BundleError(f"{path} is damaged: it holds no settings")
    return config


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


def read_provenance(run: Path) -> dict[str, Any]:
    """Read the provenance of a run; empty where the run ended before writing it.

    Raises:
        BundleError: the file is damaged.
    """
    path = run / BUNDLE / "provenance.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise BundleError(f"{path} is damaged (invalid JSON): {error}") from error
    if not isinstance(content, dict) or "data_sha256" not in content:
        raise BundleError(f"{path} is damaged: data_sha256 is missing")
    return content


def load_bundle(run: Path) -> Bundle:
    """Load the fitted forecaster of a finished run.

    Raises:
        BundleError: `run` is not a run folder, or the run did not finish.
    """
    config = read_config(run)
    folder = run / BUNDLE
    try:
        weights = load_tensors(str(folder / "model.safetensors"))
        arrays = load_arrays(str(folder / "transforms.safetensors"))
    except (FileNotFoundError, SafetensorError) as error:
        raise BundleError(
            f"{folder} is not a whole bundle: {error}. The run has not finished, or a file is "
            f"damaged; {command_hint('train', 'resume', run)} continues an unfinished run"
        ) from error
    features: FeatureSet = instantiate(config.features)
    net: nn.Module = instantiate(config.model, features=len(features.names))
    target = RankTarget.from_arrays(arrays_below(arrays, "target/"))
    to_rank = partial(instantiate(config.target_scale).to_rank, target=target)
    return Bundle(
        config,
        _filled_nets(net, instantiate(config.link), to_rank, weights),
        features,
        instantiate(config.target),
        FeatureTransform.from_arrays(arrays_below(arrays, "features/")),
        target,
    )


def _filled_nets(net: nn.Module, link: Link, to_rank: ToRank, weights: dict[str, Tensor]) -> Nets:
    """Load the weights of a net, or the stacked weights of a population."""
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    if all(one.shape == shapes.get(name) for name, one in weights.items()):
        net.load_state_dict(weights)
        return Nets(net.eval(), link, to_rank)
    net.load_state_dict({name: one[0] for name, one in weights.items()})  # refuses another net
    return Nets(net.eval(), link, to_rank, weights)


def provenance(bars: BarSummary) -> dict[str, Any]:
    """Return data fingerprint, versions and commit."""
    return {
        "data": bars.origin,
        "data_sha256": bars.sha256,
        "rows_in": bars.rows_in,
        "first_bar": str(bars.first_bar),
        "last_bar": str(bars.last_bar),
        **bars.facts,
        "versions": {name: library_version(name) for name in _VERSIONED},
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the commit of the source tree, with + for uncommitted changes; None without git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(root), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
