"""A recorded step run again on the CPU, watched for the first tensor that is not finite.

Dropout draws the masks that it drew then, but for those of a GPU, which a CPU cannot draw.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Float
from torch import Tensor, nn

from robust_fin.training.assembly import function_of
from robust_fin.training.engine.step_state import HashedDropout
from robust_fin.training.recovery.guard import FP16_PRECISIONS
from robust_fin.training.recovery.record import StepRecord

log = logging.getLogger(__name__)

FLOAT64 = "64-true"
_MIXED = {"bf16-mixed": torch.bfloat16, **dict.fromkeys(map(str, FP16_PRECISIONS), torch.float16)}
_LARGEST = 3  # rows to name where none is not finite by itself


@dataclass(frozen=True, slots=True)
class NonFiniteTensor:
    """The first tensor that was not finite.

    Attributes:
        place: a module with its class, or link, loss, gradient norm, optimizer step.
        what: output, gradient, weight or value.
        rows: places in the batch of the rows that cause it, the most likely first.
    """

    place: str
    what: str
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a recorded step does when it is run again.

    Attributes:
        precision: it was run in.
        loss: sum over its batches.
        gradient_norm: before clipping.
        inputs: places of the rows with a feature or target that is not finite.
        weights: names of weights that were not finite before the step.
        finding: the first tensor that is not finite; None where all are.
    """

    precision: str
    loss: float
    gradient_norm: float
    inputs: tuple[int, ...]
    weights: tuple[str, ...]
    finding: NonFiniteTensor | None


def replay_step(record: StepRecord) -> list[Replay]:
    """Run the step in float64 and, where all is finite in that, in the precision of the run."""
    found = [replay_at_precision(record, FLOAT64)]
    own = str(record.config.trainer.precision)
    if found[0].finding is None and own not in (FLOAT64, "64"):
        found.append(replay_at_precision(record, own))
    return found


def replay_at_precision(record: StepRecord, precision: str) -> Replay:
    """Run the step once.

    Args:
        record: of the step.
        precision: Lightning's word for it.
    """
    bad, config = record.bad, record.config
    dtype = torch.float64 if precision in (FLOAT64, "64") else torch.float32
    net: nn.Module = instantiate(config.model, features=bad.x.shape[1]).to(dtype).train()
    net.load_state_dict(bad.net)
    watch = NonFiniteDetector(net)
    cut = (one.to(dtype).chunk(bad.batches) for one in (bad.x, bad.target))
    batches = zip(*cut, strict=True)
    link, loss, total = function_of(config.link), function_of(config.loss), 0.0
    with _random_state(record), _key(record):
        for x, target in batches:
            with _cast(precision):
                forecast = watch.seen("link", link(net(x)))
                value = watch.seen("loss", loss(forecast, target))
            total += float(value.detach())
            (value / bad.batches).backward()
            watch.offset += len(x)
    norm = _gradient_norm(net)
    if watch.finding is None and not norm.isfinite():
        watch.finding = NonFiniteTensor(
            _largest_gradient(net), "gradient norm", _largest_rows(bad.x)
        )
    if watch.finding is None:
        watch.finding = _after_update(record, net, norm)
    rows = torch.isfinite(bad.x).all(dim=1) & torch.isfinite(bad.target)
    return Replay(
        precision,
        total,
        float(norm),
        _places(~rows),
        tuple(name for name, one in bad.net.items() if not one.isfinite().all()),
        watch.finding,
    )


class NonFiniteDetector:
    """Keeps the first tensor that is not finite, on the way forward and back.

    Attributes:
        finding: it, or None.
        offset: rows of the batches before the running one.
    """

    def __init__(self, net: nn.Module) -> None:
        """Watch every module's output, its gradient, and the gradients of the weights."""
        self.finding: NonFiniteTensor | None = None
        self.offset = 0
        for name, module in net.named_modules():
            if isinstance(module, nn.Identity):
                continue  # it only passes on
            place = f"{name or 'the net'} ({type(module).__name__})"
            module.register_forward_hook(self._hook(place))
            for key, weight in module.named_parameters(recurse=False):
                weight.register_hook(self._looking(place, f"gradient of {key}", of_rows=False))

    def seen(self, place: str, output: Tensor) -> Tensor:
        """Look at a tensor now, and at its gradient when it comes."""
        self._look(place, "output", output.detach(), of_rows=output.dim() > 0)
        if output.requires_grad:
            output.register_hook(self._looking(place, "gradient of its output", of_rows=True))
        return output

    def _hook(self, place: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:  # noqa: ARG001
            if isinstance(output, Tensor):
                self.seen(place, output)

        return hook

    def _looking(self, place: str, what: str, *, of_rows: bool) -> Callable[[Tensor], None]:
        return lambda gradient: self._look(place, what, gradient, of_rows=of_rows)

    def _look(self, place: str, what: str, values: Tensor, *, of_rows: bool) -> None:
        """Look at a tensor; its first dimension may be the rows of the batch."""
        if self.finding is None and not values.isfinite().all():
            rows: tuple[int, ...] = ()
            if of_rows and values.dim():
                bad = ~values.isfinite().reshape(len(values), -1).all(dim=1)
                rows = tuple(self.offset + one for one in _places(bad))
            self.finding = NonFiniteTensor(place, what, rows)


def _after_update(record: StepRecord, net: nn.Module, norm: Tensor) -> NonFiniteTensor | None:
    """The weight that the optimizer's step would make not finite, or too large to square."""
    config, bad = record.config, record.bad
    if config.trainer.gradient_clip_val and config.trainer.gradient_clip_algorithm != "value":
        nn.utils.clip_grads_with_norm_(net.parameters(), config.trainer.gradient_clip_val, norm)
    optimizer = instantiate(config.optimizer)(net.parameters())
    optimizer.param_groups[0]["lr"] = bad.lr
    for name, weight in net.named_parameters():
        kept = {k: v for k, v in bad.optimizer.items() if k.rpartition("/")[0] == name}
        if kept:
            optimizer.state[weight] = {
                key.rpartition("/")[2]: one.to(weight.dtype) if one.dim() else one
                for key, one in kept.items()
            }
    optimizer.step()
    most = torch.finfo(torch.float32).max ** 0.5  # of the run
    for name, weight in net.named_parameters():
        if not weight.isfinite().all() or weight.norm() > most:
            return NonFiniteTensor(f"the optimizer's step of {name}", "weight", ())
    return None


def _gradient_norm(net: nn.Module) -> Float[Tensor, ""]:
    return nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])


def _largest_gradient(net: nn.Module) -> str:
    """The module whose weights have the largest gradient."""
    sizes = {
        name: float(weight.grad.double().norm())
        for name, weight in net.named_parameters()
        if weight.grad is not None
    }
    name = max(sizes, key=lambda one: sizes[one]).rpartition(".")[0]
    return f"{name or 'the net'} ({type(net.get_submodule(name)).__name__})"


def _largest_rows(x: Float[Tensor, "rows features"]) -> tuple[int, ...]:
    return tuple(x.abs().amax(dim=1).argsort(descending=True)[:_LARGEST].tolist())


def _places(bad: Tensor) -> tuple[int, ...]:
    return tuple(torch.nonzero(bad)[:, 0].tolist())


@contextmanager
def _random_state(record: StepRecord) -> Iterator[None]:
    """The generator as it was before the step; put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        if record.bad.rng_state is not None:
            torch.set_rng_state(record.bad.rng_state)
        yield


def _key(record: StepRecord) -> AbstractContextManager[object]:
    """The compiled engine's dropout masks."""
    if record.bad.dropout_key is None:
        return nullcontext()
    return HashedDropout(torch.tensor(record.bad.dropout_key, dtype=torch.int32))


def _cast(precision: str) -> AbstractContextManager[object]:
    dtype = _MIXED.get(precision)
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)
