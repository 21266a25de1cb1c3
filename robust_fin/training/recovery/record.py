"""The record of a step that was not finite: all that is needed to see it again, in one file.

`nonfinite/step_<n>.safetensors` of the run folder holds the rows of the batch with their times and
contracts, the state of net and optimizer before the step, the random state, the gradient norms
before it, and the config. No pickle in it; it is written whole or not at all.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from robust_fin.data.batches import EpochOrder
from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import BundleError

log = logging.getLogger(__name__)

FOLDER, ENDING = "nonfinite", ".safetensors"
KIND = "robust_fin record of a step, 1"
_NET, _OPTIMIZER = "net/", "optimizer/"
_NUMBERS = (
    "step", "loss", "gradient_norm", "lr", "reason", "batches", "dropout_key", "rank",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NonFiniteStep:
    """An optimizer step that was not taken, and the state before it.

    Attributes:
        step: optimizer steps done before it.
        loss: sum over its batches.
        gradient_norm: before clipping.
        lr: its learning rate.
        reason: in words.
        x: rows of all its batches, as the net gets them.
        target: of those rows, as the loss gets it.
        rows: their numbers among the training rows; None where the loader does not tell.
        batches: that x is cut into; more than one where gradients are accumulated.
        net: weights and buffers by name.
        optimizer: its tensors, as `PARAMETER/NAME`.
        rng_state: of torch on the CPU before the first batch; None in the compiled engine.
        dropout_key: of the compiled engine's masks; None in the plain one.
        rank: of the process whose rows these are; None where there is one process.
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
    """A record as it was read.

    Attributes:
        bad: the step.
        norms: gradient norms of the steps before, the newest last.
        config: of the run, as composed.
        features: names of the inputs.
        time: start of each row's bar, datetime64[ns] UTC; None where the rows are not known.
        contract: code of each row's contract; likewise.
    """

    bad: NonFiniteStep
    norms: Float[Tensor, " steps"]
    config: DictConfig
    features: tuple[str, ...]
    time: np.ndarray | None
    contract: tuple[str, ...] | None


class StepRecorder:
    """Writes the records of one fit.

    Args:
        folder: of the run.
        stage: of the fit; before the file's name.
        config: as composed.
        data: the fold that is trained on, which knows the times of its rows.
    """

    def __init__(
        self, folder: Path, *, stage: str, config: DictConfig, data: BarDataModule
    ) -> None:
        """Nothing is written yet."""
        self.folder, self.stage, self.config, self.data = folder / FOLDER, stage, config, data

    def told(self, bad: NonFiniteStep, *, norms: Sequence[float]) -> str:
        """Write the record, and say where; a disk that refuses it does not hide the step."""
        try:
            path = self.write(bad, norms=norms)
        except OSError as error:
            log.warning("the record of step %d could not be written: %s", bad.step, error)
            return ""
        return f". python -m robust_fin.replay record={path} shows the module and the rows"

    def write(
        self, bad: NonFiniteStep, *, norms: Sequence[float], member: int | None = None
    ) -> Path:
        """Write a record.

        Args:
            bad: the step.
            norms: gradient norms of the steps before, the newest last.
            member: number of the member in a population; before the file's name.

        Returns:
            The file, whose name no earlier record has.
        """
        tensors = _tensors(bad) | {"norms": torch.tensor(norms, dtype=torch.float64)}
        about: dict[str, Any] = {
            "numbers": {name: getattr(bad, name) for name in _NUMBERS},
            "features": self.data.features.names,
            "contract": None,
            "config": OmegaConf.to_yaml(self.config, resolve=True),
        }
        if bad.rows is not None:
            examples, place = self.data.market.examples, bad.rows.cpu().numpy()
            numbers = self.data.fitted.span("train")[place]
            time = examples.time[numbers].astype("datetime64[ns]").astype(np.int64)
            tensors["time"] = torch.from_numpy(time)
            about["contract"] = [str(code) for code in examples.contract[numbers]]
        places = {"rank": bad.rank, "member": member, "step": bad.step}
        words = [f"{name}_{place}" for name, place in places.items() if place is not None]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = _free(self.folder, "_".join([self.stage, *words] if self.stage else words))
        unfinished = path.with_suffix(".part")
        save_file(tensors, unfinished, metadata={"kind": KIND, "about": json.dumps(about)})
        unfinished.replace(path)
        return path


def read_record(path: Path) -> StepRecord:
    """A record that `Recorder.write` wrote.

    Raises:
        BundleError: there is no such file, or it is something else.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"record={path} cannot be read as a record: {error}. A run that met a step which was "
            f"not finite has one in its folder, {FOLDER}/step_<n>{ENDING}"
        ) from error
    if metadata.get("kind") != KIND:
        raise BundleError(f"record={path} holds tensors and is no record of a step")
    about = json.loads(metadata["about"])
    config = OmegaConf.create(about["config"])
    assert isinstance(config, DictConfig)
    bad = NonFiniteStep(
        **about["numbers"],
        x=tensors["x"],
        target=tensors["target"],
        rows=tensors.get("rows"),
        net=_below(tensors, _NET),
        optimizer=_below(tensors, _OPTIMIZER),
        rng_state=tensors.get("rng_state"),
    )
    time = tensors["time"].numpy().astype("datetime64[ns]") if "time" in tensors else None
    contract = None if about["contract"] is None else tuple(about["contract"])
    return StepRecord(bad, tensors["norms"], config, tuple(about["features"]), time, contract)


def last_batch_rows(order: EpochOrder, *, batches: int) -> Int[Tensor, " rows"]:
    """Numbers of the training rows in the last batches that a loader gave, this process's."""
    used = order.permutation()[: order.steps * order.batch_size * order.world_size]
    steps = used.view(order.steps, order.world_size, order.batch_size)[:, order.rank]
    return steps[order.next_step - batches : order.next_step].reshape(-1)


def net_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers, copied."""
    return {name: one.detach().cpu().clone() for name, one in net.state_dict().items()}


def optimizer_tensors(net: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """What the optimizer keeps of each weight, copied, as `PARAMETER/NAME`."""
    return {
        f"{name}/{key}": value.detach().cpu().clone()
        for name, one in net.named_parameters()
        for key, value in optimizer.state.get(one, {}).items()
        if isinstance(value, Tensor)
    }


def _tensors(bad: NonFiniteStep) -> dict[str, Tensor]:
    named = {name: getattr(bad, name) for name in ("x", "target", "rows", "rng_state")}
    found = {name: one for name, one in named.items() if one is not None}
    found |= {f"{_NET}{name}": one for name, one in bad.net.items()}
    found |= {f"{_OPTIMIZER}{name}": one for name, one in bad.optimizer.items()}
    return {name: one.detach().cpu().contiguous() for name, one in found.items()}


def _free(folder: Path, name: str) -> Path:
    """A path of that name which is not taken; a step can fail again after a rollback."""
    path, number = folder / f"{name}{ENDING}", 2
    while path.exists():
        path, number = folder / f"{name}_{number}{ENDING}", number + 1
    return path


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
