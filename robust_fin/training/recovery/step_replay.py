"""A recorded step run again on the CPU, to find the first tensor that is not finite.

Dropout uses the recorded masks, except those of a GPU, which a CPU cannot reproduce.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robust_fin.training.engine.step_state import HashedDropout
from robust_fin.training.recovery.record import NonFiniteStep, StepRecord
from robust_fin.training.settings import FitSettings

FLOAT64 = "64-true"
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}
_LARGEST = 3  # rows to name if only their sum is not finite
_LIMIT = torch.finfo(torch.float32).max ** 0.5  # norm of a weight whose square overflows


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
