"""Record and replay of a non-finite optimizer step.

nonfinite/step_<n>.safetensors in the run folder holds the rows of the batch with their times and
contracts, the net and optimizer before the step, the random state, the gradient norms of the steps
before, and the config. It holds no pickle and is written atomically.

A replay runs the step again on the CPU, to find the first tensor that is not finite. Dropout uses
the recorded masks, except those of a GPU, which a CPU cannot reproduce.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from robust_fin.data.batches import EpochOrder
from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import BundleError
from robust_fin.runtime.files import write_atomic
from robust_fin.runtime.records import NUMBER, Kind, check_fields
from robust_fin.training.engine.step_state import HashedDropout
from robust_fin.training.settings import FitSettings

log = logging.getLogger(__name__)

FOLDER, SUFFIX = "nonfinite", ".safetensors"
KIND = "robust_fin record of a step, 1"
_NET, _OPTIMIZER = "net/", "optimizer/"
_TENSORS = ("x", "target", "rows", "rng_state")
_NUMBERS = (
    "step", "loss", "gradient_norm", "lr", "reason", "batches", "dropout_key", "rank",
)  # fmt: skip

FLOAT64 = "64-true"
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}
_LARGEST = 3  # rows to name if only their sum is not finite
_LIMIT = torch.finfo(torch.float32).max ** 0.5  # norm of a weight whose square overflows


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


@dataclass(frozen=True, slots=True)
class NonFiniteTensor:
    """The first tensor that is not finite.

    Attributes:
        place: a module with its class, or link, loss, or the optimizer's step.
        kind: output, gradient norm, weight, ...
        rows: positions in the batch of the rows that cause it, the most likely first.
    """

    place: str
    kind: str
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """The result of replaying a step.

    Attributes:
        precision: of the replay.
        loss: sum over its batches.
        gradient_norm: before clipping.
        bad_rows: positions of the rows with a feature or target that is not finite.
        bad_weights: names of the weights that were not finite before the step.
        first: the first tensor that is not finite; None if all are finite.
    """

    precision: str
    loss: float
    gradient_norm: float
    bad_rows: tuple[int, ...]
    bad_weights: tuple[str, ...]
    first: NonFiniteTensor | None


def replay_step(record: StepRecord, settings: FitSettings) -> list[Replay]:
    """Replay in float64 and, if all is finite there, in the precision of the run."""
    replays = [replay_at_precision(record, settings, FLOAT64)]
    precision = str(settings.trainer.precision)
    if replays[0].first is None and precision not in (FLOAT64, "64"):
        replays.append(replay_at_precision(record, settings, precision))
    return replays


def replay_at_precision(record: StepRecord, settings: FitSettings, precision: str) -> Replay:
    """Replay once.

    Args:
        record: of the step.
        settings: of its fit, built from the record's config.
        precision: in Lightning's notation.
    """
    bad = record.bad
    dtype = torch.float64 if precision in (FLOAT64, "64") else torch.float32
    net = settings.net(features=bad.x.shape[1]).to(dtype).train()
    net.load_state_dict(bad.net)
    detector, total = NonFiniteDetector(net), 0.0
    batches = (values.to(dtype).chunk(bad.batches) for values in (bad.x, bad.target))
    with _recorded_dropout(bad):
        for x, target in zip(*batches, strict=True):
            with torch.autocast("cpu", dtype=_MIXED.get(precision), enabled=precision in _MIXED):
                forecast = detector.check_output("link", settings.link(net(x)))
                loss = detector.check_output("loss", settings.loss(forecast, target))
            total += float(loss.detach())
            (loss / bad.batches).backward()
            detector.offset += len(x)
    norm = nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
    first = detector.first
    if first is None and not norm.isfinite():
        largest = bad.x.abs().amax(dim=1).argsort(descending=True)[:_LARGEST].tolist()
        first = NonFiniteTensor(_largest_gradient(net), "gradient norm", tuple(largest))
    return Replay(
        precision,
        total,
        float(norm),
        _positions(~(bad.x.isfinite().all(dim=1) & bad.target.isfinite())),
        tuple(name for name, value in bad.net.items() if not value.isfinite().all()),
        first or _find_bad_update(bad, settings, net, norm),
    )


class NonFiniteDetector:
    """Hooks on a net that keep the first non-finite tensor of the forward and backward pass.

    Attributes:
        first: the tensor, or None.
        offset: rows of the batches before the current one.
    """

    def __init__(self, net: nn.Module) -> None:
        self.first: NonFiniteTensor | None = None
        self.offset = 0
        for name, module in net.named_modules():
            if isinstance(module, nn.Identity):
                continue
            place = _describe_module(name, module)
            module.register_forward_hook(self._output_hook(place))
            for key, weight in module.named_parameters(recurse=False):
                weight.register_hook(self._gradient_hook(place, f"gradient of {key}", rows=False))

    def check_output(self, place: str, output: Tensor) -> Tensor:
        """Check a tensor now, and its gradient in the backward pass; return the tensor."""
        self._check(place, "output", output.detach(), rows=True)
        if output.requires_grad:
            output.register_hook(self._gradient_hook(place, "gradient of its output", rows=True))
        return output

    def _output_hook(self, place: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
            if isinstance(output, Tensor):
                self.check_output(place, output)

        return hook

    def _gradient_hook(self, place: str, kind: str, *, rows: bool) -> Callable[[Tensor], None]:
        return lambda gradient: self._check(place, kind, gradient, rows=rows)

    def _check(self, place: str, kind: str, values: Tensor, *, rows: bool) -> None:
        """Check a tensor, whose first dimension is the rows of the batch if `rows` is true."""
        if self.first is not None or values.isfinite().all():
            return
        positions: tuple[int, ...] = ()
        if rows and values.dim():
            bad = ~values.isfinite().reshape(len(values), -1).all(dim=1)
            positions = tuple(self.offset + position for position in _positions(bad))
        self.first = NonFiniteTensor(place, kind, positions)


def _find_bad_update(
    bad: NonFiniteStep, settings: FitSettings, net: nn.Module, norm: Float[Tensor, ""]
) -> NonFiniteTensor | None:
    """Take the optimizer step; return the first weight that is not finite or too large after it."""
    if clip := settings.trainer.clip_norm:
        nn.utils.clip_grads_with_norm_(net.parameters(), clip, norm)
    optimizer = settings.optimizer(net.parameters())
    optimizer.param_groups[0]["lr"] = bad.lr
    weights = dict(net.named_parameters())
    for path, value in bad.optimizer.items():
        name, _, key = path.rpartition("/")
        value = value.to(weights[name].dtype) if value.dim() else value
        optimizer.state[weights[name]][key] = value
    optimizer.step()
    for name, weight in weights.items():
        if not weight.isfinite().all() or weight.norm() > _LIMIT:
            return NonFiniteTensor(f"the optimizer's step of {name}", "weight", ())
    return None


def _describe_module(name: str, module: nn.Module) -> str:
    return f"{name or 'the net'} ({type(module).__name__})"


def _largest_gradient(net: nn.Module) -> str:
    """Return the module whose weight has the largest gradient."""
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    largest = max(gradients, key=lambda name: float(gradients[name].double().norm()))
    name = largest.rpartition(".")[0]
    return _describe_module(name, net.get_submodule(name))


def _positions(mask: Bool[Tensor, " rows"]) -> tuple[int, ...]:
    return tuple(torch.nonzero(mask)[:, 0].tolist())


@contextmanager
def _recorded_dropout(bad: NonFiniteStep) -> Iterator[None]:
    """Reproduce the dropout masks of the step; restore the random state on exit."""
    with torch.random.fork_rng(devices=[]):
        if bad.rng_state is not None:
            torch.set_rng_state(bad.rng_state)
        if bad.dropout_key is None:
            yield
            return
        with HashedDropout(torch.tensor(bad.dropout_key, dtype=torch.int32)):
            yield
