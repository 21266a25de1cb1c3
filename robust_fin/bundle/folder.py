"""The bundle of a run: config, weights and fitted transforms, without pickle.

```
bundle/config.yaml             the resolved config, written when the run starts
bundle/model.safetensors       weights of the net; for a population with a leading member axis
bundle/transforms.safetensors  arrays: features/<position>/<kind>/<array>, target/<array>
bundle/transforms.json         names and units
bundle/provenance.json         data fingerprint, versions, commit
bundle/manifest.json           the seal: sha256 of the other files; written last
```
"""

import hashlib
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as arrays_as_bytes
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save as tensors_as_bytes
from torch import Tensor, nn

from robust_fin.bundle.config import BUNDLE, build, read_config
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
from robust_fin.runtime.files import write_atomic, write_json
from robust_fin.runtime.records import read_json
from robust_fin.runtime.terminal import command_hint

MANIFEST = "manifest.json"
_SEALED = (
    *("config.yaml", "model.safetensors", "transforms.safetensors"),
    *("transforms.json", "provenance.json"),
)
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
    """Write config and provenance before training, and break the seal of an earlier fit."""
    (run / BUNDLE / MANIFEST).unlink(missing_ok=True)
    write_config(run, config)
    write_json(run / BUNDLE / "provenance.json", provenance(bars))


def finish_bundle(
    run: Path, *, nets: Nets, transform: FeatureTransform, target: RankTarget, names: FeatureSet
) -> None:
    """Write weights and fitted transforms, and seal the bundle."""
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
    write_json(folder / "transforms.json", described)
    write_json(folder / MANIFEST, {"sha256": {name: _sha256(folder / name) for name in _SEALED}})


def read_provenance(run: Path) -> dict[str, Any]:
    """Read the provenance of a run; empty where the run ended before writing it.

    Raises:
        BundleError: the file is damaged.
    """
    path = run / BUNDLE / "provenance.json"
    if not path.is_file():
        return {}
    return read_json(path, {"data_sha256": str, "data": str})


def load_bundle(run: Path, *, modules: Collection[str] = ()) -> Bundle:
    """Load the fitted forecaster of a finished run.

    Args:
        run: the run folder.
        modules: your own modules that the run may use; a file is not trusted to name them.

    Raises:
        BundleError: `run` is not a run folder, the run did not finish, the bundle was changed
            since, or it names code that is neither ours nor in `modules`.
    """
    config = read_config(run)
    folder = run / BUNDLE
    _check_seal(run)
    try:
        weights = load_tensors(str(folder / "model.safetensors"))
        arrays = load_arrays(str(folder / "transforms.safetensors"))
    except (FileNotFoundError, SafetensorError) as error:
        raise BundleError(
            f"{folder} is not a whole bundle: {error}. The run has not finished, or a file is "
            f"damaged; {command_hint('train', 'resume', run)} continues an unfinished run"
        ) from error
    make = partial(build, config, modules=modules)
    features: FeatureSet = make("features")
    net: nn.Module = make("model", features=len(features.names))
    _check_weights(weights, net.state_dict(), origin=str(folder / "model.safetensors"))
    transform, target = _fitted(arrays, features, origin=str(folder / "transforms.safetensors"))
    to_rank = partial(make("target_scale").to_rank, target=target)
    nets = _filled_nets(net, make("link"), to_rank, weights)
    return Bundle(config, nets, features, make("target"), transform, target)


def _check_seal(run: Path) -> None:
    """Raise BundleError unless every file of a bundle is as it was when the run finished."""
    folder = run / BUNDLE
    try:
        sealed = read_json(folder / MANIFEST, {"sha256": dict})["sha256"]
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} is not a whole bundle: it has no {MANIFEST}. The run has not finished, or "
            "was trained before there were seals; "
            f"{command_hint('train', 'resume', run)} continues an unfinished run"
        ) from error
    for name in _SEALED:
        if not (folder / name).is_file():
            raise BundleError(f"{folder} is not a whole bundle: {name} is missing")
        if _sha256(folder / name) != sealed.get(name):
            raise BundleError(
                f"{folder / name} was changed after the run had finished: its sha256 is not that "
                f"of {MANIFEST}. Restore the file, or train again"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_weights(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, origin: str
) -> None:
    """Raise BundleError unless the weights are those of the net, or of several such nets."""
    if weights.keys() != own.keys():
        differ = ", ".join(sorted(weights.keys() ^ own.keys())[:5])
        raise BundleError(f"{origin} holds the weights of another net: {differ}")
    members = {one.shape[: one.ndim - own[name].ndim] for name, one in weights.items()}
    for name, one in weights.items():
        if one.shape[one.ndim - own[name].ndim :] != own[name].shape or len(members) > 1:
            raise BundleError(
                f"{origin} holds the weights of another net: {name} has shape "
                f"{tuple(one.shape)}, not {tuple(own[name].shape)}"
            )
        if one.is_floating_point() != own[name].is_floating_point():
            raise BundleError(f"{origin} is damaged: {name} is of type {one.dtype}")
        if not bool(torch.isfinite(one).all()):
            raise BundleError(f"{origin} is damaged: {name} is not finite")


def _fitted(
    arrays: Mapping[str, np.ndarray], features: FeatureSet, *, origin: str
) -> tuple[FeatureTransform, RankTarget]:
    """Restore transform and target, and try both on a row of zeros."""
    try:
        bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if bad:
            raise ValueError(f"{bad[0]} is not finite")
        transform = FeatureTransform.from_arrays(arrays_below(arrays, "features/"))
        target = RankTarget.from_arrays(arrays_below(arrays, "target/"))
        tried = transform.transform(np.zeros((1, len(features.names))))
        if tried.shape != (1, len(features.names)) or not np.isfinite(tried).all():
            raise ValueError(f"it is not that of {len(features.names)} features")
        if not np.isfinite(target.transform(np.zeros(1))).all():
            raise ValueError("the rank target is empty")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BundleError(f"{origin} is damaged: {error}") from error
    return transform, target


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
