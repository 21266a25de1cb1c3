"""What a finished run is on disk: config, weights and fitted transforms. No pickle in it.

```
bundle/config.yaml             the resolved config, written when the run starts
bundle/model.safetensors       weights of the net
bundle/transforms.safetensors  arrays: features/<position>/<kind>/<array>, target/<array>
bundle/transforms.json         names and units
bundle/provenance.json         data fingerprint, versions, commit
```
"""

import importlib.metadata
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor, nn

from robust_fin.data.cache import NO_CACHE
from robust_fin.data.examples import Examples, make_examples
from robust_fin.data.folds import Market
from robust_fin.data.rank_target import RankTarget
from robust_fin.data.targets import ForwardReturn
from robust_fin.data.transforms import FeatureTransform
from robust_fin.errors import BundleError
from robust_fin.features.registry import FeatureSet
from robust_fin.market.facts import BarFacts
from robust_fin.market.sources import Bars, BarSource

SCORE_BLOCK = 4096  # a row's score depends, in the last bit, on the size of the batch it is in
FOLDER = "bundle"
_VERSIONED = ("torch", "lightning", "numpy", "pandas", "scipy", "hydra-core", "robust-fin")


def score_rows(
    net: nn.Module, link: Callable[[Tensor], Tensor], x: Float[Tensor, "rows features"]
) -> Float[np.ndarray, " rows"]:
    """Forecasts, row by row the same whatever else is in `x`, to the last bit.

    Args:
        net: put in evaluation mode here.
        link: raw score -> forecast.
        x: transformed features, float32, on the CPU.
    """
    net = net.eval().cpu()
    out = torch.empty(len(x), dtype=torch.float32)
    with torch.inference_mode():
        for start in range(0, len(x), SCORE_BLOCK):
            rows = x[start : start + SCORE_BLOCK]
            block = torch.zeros(SCORE_BLOCK, x.shape[1])
            block[: len(rows)] = rows
            out[start : start + len(rows)] = link(net(block))[: len(rows)]
    return out.numpy()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A fitted forecaster that needs bars and nothing else.

    Attributes:
        config: as the run resolved it.
        net: with its weights, in evaluation mode.
        link: raw score -> forecast.
        features: the inputs, in order.
        label: what the outcome is.
        transform: of the features, fitted.
        target: of the outcome, fitted.
    """

    config: DictConfig
    net: nn.Module
    link: Callable[[Tensor], Tensor]
    features: FeatureSet
    label: ForwardReturn
    transform: FeatureTransform
    target: RankTarget

    def examples(self, bars: Bars) -> Examples:
        """The rows of `bars` that can be scored."""
        return make_examples(bars, names=self.features.names, target=self.label)

    def predict(self, bars: Bars) -> pd.DataFrame:
        """A predictions table with a row for every row that has all features.

        The newest rows are there too; their target and outcome are null.
        """
        return self._scored(self.examples(bars))

    def predict_source(self, source: BarSource) -> pd.DataFrame:
        """`predict` of the bars of a source; where it has `block_rows`, they are never all held."""
        market = Market.read(source, features=self.features, target=self.label, cache=NO_CACHE)
        return self._scored(market.examples)

    def _scored(self, examples: Examples) -> pd.DataFrame:
        x = torch.from_numpy(self.transform.transform(examples.features))
        score = score_rows(self.net, self.link, x)
        rows = np.arange(examples.time.size)
        return predictions_table(examples, rows, {"net": score}, target=self.target)


def predictions_table(
    examples: Examples,
    rows: np.ndarray,
    scores: dict[str, Float[np.ndarray, " rows"]],
    *,
    target: RankTarget,
    fold: int = 0,
) -> pd.DataFrame:
    """One row a (time, contract, fold, model).

    Args:
        examples: where the rows come from.
        rows: numbers of the scored rows.
        scores: forecasts by model (net, or a baseline's name), in rank units.
        target: ranks the outcomes.
        fold: number of the fold.

    Returns:
        time, contract, trading_date, fold, model, score, score_std (null: one member), target,
        outcome (fraction), label_end; target and outcome are null where the future is not there.
    """
    outcome = examples.outcome[rows]
    known = ~np.isnan(outcome)
    ranks = np.full(rows.size, np.nan)
    ranks[known] = target.transform(outcome[known])
    shared = pd.DataFrame(
        {
            "time": pd.DatetimeIndex(examples.time[rows], tz="UTC"),
            "contract": examples.contract[rows],
            "trading_date": examples.trading_date[rows],
            "fold": np.int32(fold),
        }
    )
    known_later = {"target": ranks, "outcome": outcome, "label_end": examples.label_end[rows]}
    parts = [
        shared.assign(
            model=model,
            score=score.astype(np.float32),
            score_std=np.full(rows.size, np.nan, dtype=np.float32),
            **known_later,
        )
        for model, score in scores.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(label_end=pd.DatetimeIndex(table["label_end"], tz="UTC"))


def start_bundle(run: Path, config: DictConfig, *, bars: BarFacts) -> None:
    """Write config and provenance, before training."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    _write_json(folder / "provenance.json", provenance(bars))


def finish_bundle(
    run: Path, *, net: nn.Module, transform: FeatureTransform, target: RankTarget, names: FeatureSet
) -> None:
    """Write weights and fitted transforms."""
    folder = run / FOLDER
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    save_tensors(weights, str(folder / "model.safetensors"))
    arrays = {f"features/{name}": value for name, value in transform.arrays().items()}
    arrays |= {f"target/{name}": value for name, value in target.arrays().items()}
    save_arrays(
        {name: np.ascontiguousarray(value) for name, value in arrays.items()},
        str(folder / "transforms.safetensors"),
    )
    described = {
        "features": names.units,
        "target": {"forward_return": "fraction -> rank in [0, 1]"},
    }
    _write_json(folder / "transforms.json", described)


def read_config(run: Path) -> DictConfig:
    """The config a run was started with.

    Raises:
        BundleError: `run` is not a run folder.
    """
    path = run / FOLDER / "config.yaml"
    if not path.is_file():
        raise BundleError(
            f"{run} is not a run folder: it has no {FOLDER}/config.yaml. Give the folder that "
            "robust_fin.train printed, such as outputs/top5/2024-12-19_10-00-00"
        )
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def load_bundle(run: Path) -> Bundle:
    """The fitted forecaster of a finished run.

    Raises:
        BundleError: `run` is not a run folder, or the run did not finish.
    """
    config = read_config(run)
    folder = run / FOLDER
    try:
        weights = load_tensors(str(folder / "model.safetensors"))
        arrays = load_arrays(str(folder / "transforms.safetensors"))
    except (FileNotFoundError, SafetensorError) as error:
        raise BundleError(
            f"{folder} is not a whole bundle: {error}. The run has not finished, or a file is "
            f"damaged; python -m robust_fin.train resume={run} goes on with an unfinished one"
        ) from error
    features: FeatureSet = instantiate(config.features)
    net: nn.Module = instantiate(config.model, features=len(features.names))
    net.load_state_dict(weights)
    return Bundle(
        config,
        net.eval(),
        instantiate(config.link),
        features,
        instantiate(config.target),
        FeatureTransform.from_arrays(_below(arrays, "features/")),
        RankTarget.from_arrays(_below(arrays, "target/")),
    )


def provenance(bars: BarFacts) -> dict[str, Any]:
    """What was read, with which versions and code."""
    return {
        "data": bars.origin,
        "data_sha256": bars.sha256,
        "rows_in": bars.rows_in,
        "first_bar": str(bars.first_bar),
        "last_bar": str(bars.last_bar),
        "versions": {name: _version(name) for name in _VERSIONED},
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the source tree, with + where files differ from it; None outside of one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _below(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
