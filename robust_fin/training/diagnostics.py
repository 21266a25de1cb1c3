"""TensorBoard diagnostics: norms, update ratios, activations and histograms."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from robust_fin.data.batches import TrainBatches, TrainCalls
from robust_fin.errors import NonFiniteError
from robust_fin.training.module import Forecaster
from robust_fin.training.population.module import PopulationForecaster

log = logging.getLogger(__name__)

PROBE_ROWS = 256
FLAT = 0.01  # slope below which an activation passes on next to nothing
CONSTANT = 1e-4  # spread of forecasts, in that of the targets, below which they are one number
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip


class Diagnostics(Callback):
    """Draws the table above every `every_n_steps` optimizer steps and when training ends.

    Args:
        every_n_steps: optimizer steps between two diagnoses.
        clip: largest norm of the gradient; None where it is not clipped by norm.
    """

    def __init__(self, *, every_n_steps: int, clip: float | None) -> None:
        """Nothing seen yet."""
        self.every_n_steps, self.clip = every_n_steps, clip
        self._seen, self._constant = 0, False
        self._before: list[Tensor] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from where training starts, which may be after a rollback."""
        self._seen = trainer.global_step
        assert isinstance(pl_module, Forecaster)
        if pl_module.guard.rollbacks:
            self._draw(trainer, counts(pl_module))

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        optimizer: Optimizer,
    ) -> None:
        """Keep the weights before a step that a diagnosis follows; AdamW's moments tell its own."""
        if not isinstance(optimizer, AdamW) and self._due(trainer.global_step + 1):
            assert isinstance(pl_module, Forecaster)
            self._before = [p.detach().clone() for p in pl_module.net.parameters()]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Diagnose when due."""
        if self._due(trainer.global_step):
            self._seen = trainer.global_step
            # where Lightning draws that step's loss, so that a checkpoint after the step keeps it
            self._draw(trainer, self._diagnosis(trainer, pl_module), at=trainer.global_step - 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Diagnose the steps since the last time; a run that goes on from here loses it again."""
        if trainer.global_step > self._seen:
            self._draw(trainer, self._diagnosis(trainer, pl_module))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Draw a step that was not finite where it happened."""
        if isinstance(exception, NonFiniteError):
            assert isinstance(pl_module, Forecaster)
            points = counts(pl_module)
            points["stability/nonfinite_steps"] += 1
            self._draw(trainer, points)

    def _due(self, step: int) -> bool:
        return step // self.every_n_steps > self._seen // self.every_n_steps

    @torch.no_grad()
    def _diagnosis(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        assert isinstance(pl_module, Forecaster)
        points = counts(pl_module)
        points |= norm_statistics(np.array(pl_module.guard.window), clip=self.clip)
        pl_module.guard.window.clear()
        points |= {"stability/gradient_clip": self.clip} if self.clip else {}
        points |= self._update_ratios(trainer, pl_module)
        probe = probe_rows(trainer)
        if probe is not None:
            points |= self._probe(pl_module, *probe, step=trainer.global_step)
        return points

    def _update_ratios(self, trainer: L.Trainer, module: Forecaster) -> dict[str, float]:
        before, self._before = self._before, None
        (optimizer,) = trainer.optimizers
        if isinstance(optimizer, AdamW):
            rate = module.rate(optimizer, trainer.global_step - 1)
            return update_ratios(module.net, adamw_updates(module.net, optimizer, rate))
        if before is None:
            return {}
        pairs = zip(module.net.named_parameters(), before, strict=True)
        return update_ratios(module.net, {name: p.detach() - old for (name, p), old in pairs})

    def _probe(
        self, module: Forecaster, x: Tensor, target: Tensor, *, step: int
    ) -> dict[str, float]:
        found, forecast = activation_statistics(module.net, module.link, x)
        spread, wanted = float(forecast.std()), float(target.std())
        constant = spread < CONSTANT * wanted
        if constant and not self._constant:
            log.warning(
                "the net forecasts the same for every row: over %d training rows its forecasts "
                "spread by %.1e, the targets by %.1e, at step %d. It learns nothing; lower "
                "optimizer.lr or raise schedule.warmup, and see stability/dead",
                len(x),
                spread,
                wanted,
                step,
            )
        self._constant = constant
        return found | {"stability/forecast_std": spread}

    def _draw(self, trainer: L.Trainer, points: dict[str, float], *, at: int | None = None) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(points, step=trainer.global_step if at is None else at)


def counts(module: Forecaster) -> dict[str, float]:
    """What the guard has counted so far."""
    guard = module.guard
    return {
        "stability/rollbacks": float(guard.rollbacks),
        "stability/nonfinite_steps": float(guard.nonfinite_steps),
    }


def norm_statistics(norms: Float[np.ndarray, " steps"], *, clip: float | None) -> dict[str, float]:
    """Quantiles of the gradient norms that are finite, and the share that was clipped."""
    norms = norms[np.isfinite(norms)]
    if not norms.size:
        return {}
    middle, high, most = np.quantile(norms, (0.5, 0.99, 1.0)).tolist()
    found = {
        "stability/gradient_norm_p50": middle,
        "stability/gradient_norm_p99": high,
        "stability/gradient_norm_max": most,
    }
    return found | ({"stability/clipped_share": float(np.mean(norms > clip))} if clip else {})


def probe_rows(trainer: L.Trainer) -> tuple[Float[Tensor, "rows features"], Tensor] | None:
    """Training rows spread over the whole span, and their targets; None from a foreign loader."""
    loader = trainer.train_dataloader
    if not isinstance(loader, TrainBatches | TrainCalls):
        return None
    every = max(1, len(loader.target) // PROBE_ROWS)
    return loader.x[::every][:PROBE_ROWS], loader.target[::every][:PROBE_ROWS]


def update_ratios(net: nn.Module, updates: dict[str, Tensor]) -> dict[str, float]:
    """L2 of the update over L2 of the weights after it, of each module with weights of its own."""
    found = {}
    for name, module in net.named_modules():
        own = dict(module.named_parameters(prefix=name, recurse=False))
        moved = [updates[key] for key in own if key in updates]
        if moved:
            sizes = torch.stack([*torch._foreach_norm([*moved, *own.values()])]).square()
            ratio = sizes[: len(moved)].sum() / sizes[len(moved) :].sum()
            found[f"stability/update_ratio/{name or 'net'}"] = float(ratio.sqrt())
    return found


def adamw_updates(net: nn.Module, optimizer: Optimizer, lr: float) -> dict[str, Tensor]:
    """The last step of AdamW, from the moments after it.

    Args:
        net: whose weights it changed.
        optimizer: an AdamW.
        lr: learning rate of that step.
    """
    group = optimizer.param_groups[0]
    named = {name: p for name, p in net.named_parameters() if optimizer.state.get(p)}
    if not named:
        return {}
    weights = [p.detach() for p in named.values()]
    states = [optimizer.state[p] for p in named.values()]
    (first, second), step = group["betas"], float(states[0]["step"])
    roots = torch._foreach_sqrt([one["exp_avg_sq"] for one in states])
    torch._foreach_div_(roots, (1 - second**step) ** 0.5)
    torch._foreach_add_(roots, group["eps"])
    moves = torch._foreach_div([one["exp_avg"] for one in states], roots)
    torch._foreach_mul_(moves, lr / (1 - first**step))
    decay = (
        lr * group["weight_decay"]
    )  # of the weights before, which are (after + move) / (1 - decay)
    torch._foreach_add_(moves, weights, alpha=decay)
    torch._foreach_div_(moves, decay - 1)
    return dict(zip(named, moves, strict=True))


@torch.no_grad()
def activation_statistics(
    net: nn.Module, link: Callable[[Tensor], Tensor], x: Float[Tensor, "rows features"]
) -> tuple[dict[str, float], Float[Tensor, " rows"]]:
    """Saturated and dead shares of every activation module and of the link, and the forecasts.

    Args:
        net: run in evaluation mode, and left in the mode it is in.
        link: raw score -> forecast.
        x: the probe.
    """
    slopes: dict[str, Tensor] = {}
    hooks = list(_hooked(net, slopes))
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        score = net(x)
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    slopes["link"] = slope(link, score)
    found = {}
    for name, one in slopes.items():
        flat = one.abs() < FLAT
        found[f"stability/saturated/{name}"] = float(flat.float().mean())
        if name != "link":
            found[f"stability/dead/{name}"] = float(flat.all(dim=0).float().mean())
    return found, link(score)


def _hooked(
    net: nn.Module, slopes: dict[str, Tensor]
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Hooks that note the slope of each activation; before it runs, as it may work in place."""

    def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            slopes[name] = slope(module.forward, given[0])

        return hook

    for name, module in net.named_modules():
        if isinstance(module, ACTIVATIONS):
            yield module.register_forward_pre_hook(noting(name or "net"))


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Derivative of a function that works entry by entry."""
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_()
        return torch.autograd.grad(function(leaf.clone()).sum(), leaf)[0]


FIRST = 64  # optimizer steps before the first
BUCKETS = 30  # as many as TensorBoard shows
FORECASTS = 8192  # of the val span, at most, evenly spaced


class Histograms(Callback):
    """Draws them where the steps double, as a net changes most at first, and then evenly.

    An engine that makes many steps a call draws at the end of the call in which one falls due.

    Args:
        every_n_steps: optimizer steps between two, once doubling would take longer.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        """Nothing drawn yet."""
        self.every_n_steps = every_n_steps
        self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Count from where training starts."""
        self._seen = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Draw when due, where Lightning draws that step's loss."""
        step = trainer.global_step
        if histograms_due(step, self.every_n_steps) > histograms_due(
            self._seen, self.every_n_steps
        ):
            self._seen = step
            self._draw(trainer, tensors(trainer, pl_module), at=step - 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the last weights; a run that goes on from here loses them again."""
        if trainer.global_step > self._seen:
            self._draw(trainer, tensors(trainer, pl_module), at=trainer.global_step)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the forecasts; of several processes those of the first."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, Forecaster | PopulationForecaster)
        forecasts = pl_module.val_forecasts()
        points = {"val/score": forecasts[:: -(-forecasts.size // FORECASTS) or 1]}
        self._draw(trainer, points, at=max(0, trainer.global_step - 1))

    def _draw(
        self, trainer: L.Trainer, points: dict[str, Float[np.ndarray, " values"]], *, at: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                continue
            for tag, values in points.items():
                finite = values[np.isfinite(values)]
                if finite.size:
                    logger.experiment.add_histogram(tag, finite, global_step=at, bins=BUCKETS)


def histograms_due(step: int, every: int) -> int:
    """How many histograms fall due up to a step.

    >>> [step for step in range(1, 1200) if milestone(step, 500) > milestone(step - 1, 500)]
    [64, 128, 256, 500, 1000]
    """
    doubled = (min(step, every - 1) // FIRST).bit_length()
    return doubled + step // every


def tensors(
    trainer: L.Trainer, module: L.LightningModule
) -> dict[str, Float[np.ndarray, " values"]]:
    """Weights, and gradients of the probe where there is one net and a probe."""
    if isinstance(module, PopulationForecaster):
        return _matrices("weights", module.living_weights(), of_members=True)
    assert isinstance(module, Forecaster)
    found = _matrices("weights", dict(module.net.named_parameters()))
    probe = probe_rows(trainer)
    return (
        found if probe is None else found | _matrices("gradients", probe_gradients(module, *probe))
    )


def _matrices(
    kind: str, named: Mapping[str, Tensor], *, of_members: bool = False
) -> dict[str, Float[np.ndarray, " values"]]:
    """The numbers of every tensor that is no vector, under the name of its layer."""
    axes = 3 if of_members else 2
    return {
        f"{kind}/{name.removesuffix('.weight')}": one.detach().double().cpu().numpy().reshape(-1)
        for name, one in named.items()
        if one.ndim >= axes
    }


def probe_gradients(
    module: Forecaster, x: Float[Tensor, "rows features"], target: Float[Tensor, " rows"]
) -> dict[str, Tensor]:
    """Gradient of the objective of some rows, without dropout; nothing of the training is touched.

    Args:
        module: whose net, link and loss.
        x: the rows.
        target: one a row.
    """
    trained = {name: one for name, one in module.net.named_parameters() if one.requires_grad}
    with torch.enable_grad(), _evaluated(module.net):
        loss = module.loss(module(x), target)
        parts = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: one for name, one in zip(trained, parts, strict=True) if one is not None}


@contextmanager
def _evaluated(net: nn.Module) -> Iterator[None]:
    """The net in evaluation mode, then each module in the mode it was in."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
