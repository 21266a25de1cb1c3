"""Record of a non-finite optimizer step.

nonfinite/step_<n>.safetensors in the run folder holds the rows of the batch with their times and
contracts, the net and optimizer before the step, the random state, the gradient norms of the steps
before, and the config. It holds no pickle and is written atomically.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from robust_fin.data.batches import EpochOrder
from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import BundleError
from robust_fin.runtime.files import write_atomic
from robust_fin.runtime.records import NUMBER, Kind, check_fields

log = logging.getLogger(__name__)

FOLDER, SUFFIX = "nonfinite", ".safetensors"
KIND = "robust_fin record of a step, 1"
_NET, _OPTIMIZER = "net/", "optimizer/"
_TENSORS = ("x", "target", "rows", "rng_state")
_NUMBERS = (
    "step", "loss", "gradient_norm", "lr", "reason", "batches", "dropout_key", "rank",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NonFiniteStep:
    """An optimizer step that was not taken, and the state before it.

    Attributes:
        step: number of optimizer steps before it.
        loss: sum over its batches.
        gradient_norm: before clipping.
        lr: learning rate.
        reason: what is not finite, in words.
        x: rows of all its batches, as the net gets them.
        target: of those rows, as the loss gets it.
        rows: row numbers in the training span; None if the loader does not know them.
        batches: number of equal batches in x; more than 1 with gradient accumulation.
        net: weights and buffers by name.
        optimizer: state tensors by `PARAMETER/NAME`.
        rng_state: CPU generator before the first batch; None in the compiled engine.
        dropout_key: key of the compiled engine's dropout masks; None in the plain engine.
        rank: rank that these rows belong to; None in a single process.
    """

    step: int
    loss: float
    gradient_norm: float
    lr: float
    reason: str
    x: Float[Tensor, "rows features"]
    target: Float[Tensor, " rows"]
    rows: Int[Tensor, " rows"] | None
    batches: int
    net: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng_state: UInt8[Tensor, " bytes"] | None = None
    dropout_key: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The content of a record file.

    Attributes:
        bad: the step.
        norms: gradient norms of the steps before, the newest last.
        config: resolved config of the run, as YAML.
        features: names of the columns of x.
        time: start of each row's bar, datetime64[ns] UTC; None if the rows are not known.
        contract: contract of each row; None if the rows are not known.
    """

    bad: NonFiniteStep
    norms: Float[Tensor, " steps"]
    config: str
    features: list[str]
    time: np.ndarray | None
    contract: list[str] | None


class StepRecorder:
    """Writes the records of a fit.

    Args:
        folder: run folder.
        stage: of the fit; prefix of the file name.
        config: resolved config of the run, as YAML.
        data: fold that is trained on; gives the times of the rows.
    """

    def __init__(self, folder: Path, *, stage: str, config: str, data: BarDataModule) -> None:
        self.folder, self.stage, self.config, self.data = folder / FOLDER, stage, config, data

    def try_write(self, bad: NonFiniteStep, *, norms: Sequence[float]) -> Path | None:
        """Write a record to a new file; log a warning and return None if the disk fails.

        A failure does not raise, so that the error of the step itself reaches the user.
        """
        try:
            return self._write(bad, norms)
        except OSError as error:
            log.warning("cannot write the record of step %d: %s", bad.step, error)
            return None

    def _write(self, bad: NonFiniteStep, norms: Sequence[float]) -> Path:
        tensors = _pack_tensors(bad) | {"norms": torch.tensor(norms, dtype=torch.float64)}
        about: dict[str, Any] = {
            "numbers": {name: getattr(bad, name) for name in _NUMBERS},
            "features": list(self.data.features.names),
            "contract": None,
            "config": self.config,
        }
        if bad.rows is not None:
            examples = self.data.market.examples
            rows = self.data.fitted.span("train")[bad.rows.cpu().numpy()]
            time = examples.time[rows].astype("datetime64[ns]").astype(np.int64)
            tensors["time"] = torch.from_numpy(time)
            about["contract"] = [str(code) for code in examples.contract[rows]]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._new_path(bad)
        write_atomic(path, save(tensors, metadata={"kind": KIND, "about": json.dumps(about)}))
        return path

    def _new_path(self, bad: NonFiniteStep) -> Path:
        """Return a path that does not exist yet; a step can fail again after a rollback."""
        words = [self.stage, "" if bad.rank is None else f"rank_{bad.rank}", f"step_{bad.step}"]
        name, number = "_".join(filter(None, words)), 2
        path = self.folder / f"{name}{SUFFIX}"
        while path.exists():
            path, number = self.folder / f"{name}_{number}{SUFFIX}", number + 1
        return path


def read_record(path: Path) -> StepRecord:
    """Read a record file.

    Raises:
        BundleError: the file is missing or is not a record.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"record={path} cannot be read as a record: {error}. A run that met a non-finite step "
            f"has a record in its folder, {FOLDER}/step_<n>{SUFFIX}"
        ) from error
    if metadata.get("kind") != KIND:
        raise BundleError(f"record={path} holds tensors, but is not the record of a step")
    try:
        about = json.loads(metadata["about"])
        check_fields(about, _ABOUT, origin=f"record={path}")
        check_fields(about["numbers"], _NUMBER_KINDS, origin=f"record={path}")
        stored: dict[str, Any] = {name: tensors.get(name) for name in _TENSORS}
        bad = NonFiniteStep(
            **about.pop("numbers"),
            **stored,
            net=_select(tensors, _NET),
            optimizer=_select(tensors, _OPTIMIZER),
        )
        time = tensors["time"].numpy().astype("datetime64[ns]") if "time" in tensors else None
        record = StepRecord(bad, tensors["norms"], time=time, **about)
        _check_rows(record)
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"record={path} is damaged: {error}") from error
    return record


_ABOUT: Mapping[str, Kind] = {
    **{"numbers": dict, "features": list, "config": str},
    "contract": (list, type(None)),
}
_NUMBER_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("loss", "gradient_norm", "lr"), NUMBER),
    **{"step": int, "reason": str, "batches": int},
    **dict.fromkeys(("dropout_key", "rank"), (int, type(None))),
}


def _check_rows(record: StepRecord) -> None:
    """Raise ValueError unless inputs, targets, times and contracts are of the same rows."""
    x, target = record.bad.x, record.bad.target
    if x.shape != (len(target), len(record.features)) or target.ndim != 1:
        raise ValueError(f"x has shape {tuple(x.shape)}, for {len(record.features)} features")
    for name in ("time", "contract"):
        column = getattr(record, name)
        if column is not None and len(column) != len(target):
            raise ValueError(f"{name} has {len(column)} rows, x has {len(target)}")


def last_batch_rows(order: EpochOrder, *, batches: int) -> Int[Tensor, " rows"]:
    """Return the training-row numbers of the last batches that this rank's loader returned."""
    used = order.permutation()[: order.steps * order.batch_size * order.world_size]
    steps = used.view(order.steps, order.world_size, order.batch_size)[:, order.rank]
    return steps[order.next_step - batches : order.next_step].reshape(-1)


def net_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Return copies of all weights and buffers."""
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}


def optimizer_tensors(net: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return copies of the optimizer's state tensors by `PARAMETER/NAME`."""
    return {
        f"{name}/{key}": value.detach().cpu().clone()
        for name, weight in net.named_parameters()
        for key, value in optimizer.state.get(weight, {}).items()
        if isinstance(value, Tensor)
    }


def _pack_tensors(bad: NonFiniteStep) -> dict[str, Tensor]:
    tensors = {name: getattr(bad, name) for name in _TENSORS}
    tensors |= {f"{_NET}{name}": value for name, value in bad.net.items()}
    tensors |= {f"{_OPTIMIZER}{name}": value for name, value in bad.optimizer.items()}
    return {k: v.detach().cpu().contiguous() for k, v in tensors.items() if v is not None}


def _select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
