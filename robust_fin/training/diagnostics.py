"""TensorBoard diagnostics: gradient norms, update ratios, activations and histograms.

Scalars start with stability/: quantiles of the gradient norms, the share of clipped steps,
update_ratio (L2 of the last update over L2 of the weights), saturated (share of activations with a
slope below 0.01), dead (share of units saturated on every probe row), forecast_std, and the counts
of the guard. The probe is 256 training rows, always the same.
"""

import logging
from collections.abc import Callable, Iterator
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

_PROBE_ROWS = 256
_SATURATED_SLOPE = 0.01
_CONSTANT = 1e-4  # forecasts are constant if their std is below this share of the targets' std
_FIRST_HISTOGRAM = 64  # optimizer step of the first histograms
_HISTOGRAM_BINS = 30  # as many as TensorBoard shows
_HISTOGRAM_FORECASTS = 8192  # val rows in a histogram, at most, evenly spaced
_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip


class Diagnostics(Callback):
    """Logs the scalars above every `every_n_steps` optimizer steps and at the end of training.

    Args:
        every_n_steps: optimizer steps between two diagnoses.
        clip: norm to which gradients are clipped; None if they are not clipped by norm.
    """

    def __init__(self, *, every_n_steps: int, clip: float | None) -> None:
        self.every_n_steps, self.clip = every_n_steps, clip
        self._last_step, self._constant = 0, False
        self._before: list[Tensor] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from the step that training starts from; log the rollbacks so far."""
        self._last_step = trainer.global_step
        assert isinstance(pl_module, Forecaster)
        if pl_module.guard.rollbacks:
            self._log(trainer, _guard_counts(pl_module))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep the weights if a diagnosis follows; AdamW's update is computed from its moments."""
        if not isinstance(optimizer, AdamW) and self._is_due(trainer.global_step + 1):
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
        """Log a diagnosis when due, at the step of Lightning's last loss.

        A resume from a checkpoint after this step then keeps the points.
        """
        if self._is_due(trainer.global_step):
            self._last_step = trainer.global_step
            points = self._diagnose(trainer, pl_module)
            self._log(trainer, points, step=trainer.global_step - 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log a diagnosis of the remaining steps; a resume from here drops the points again."""
        if trainer.global_step > self._last_step:
            self._log(trainer, self._diagnose(trainer, pl_module))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Count a non-finite step at the step where it happened."""
        if isinstance(exception, NonFiniteError):
            assert isinstance(pl_module, Forecaster)
            points = _guard_counts(pl_module)
            points["stability/nonfinite_steps"] += 1
            self._log(trainer, points)

    def _is_due(self, step: int) -> bool:
        return step // self.every_n_steps > self._last_step // self.every_n_steps

    @torch.no_grad()
    def _diagnose(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        assert isinstance(pl_module, Forecaster)
        points = _guard_counts(pl_module)
        points |= norm_statistics(np.array(pl_module.guard.window), clip=self.clip)
        pl_module.guard.window.clear()
        points |= {"stability/gradient_clip": self.clip} if self.clip else {}
        points |= update_ratios(pl_module.net, self._last_update(trainer, pl_module))
        probe = _probe_rows(trainer, pl_module.net)
        if probe is not None:
            points |= self._probe(pl_module, *probe, step=trainer.global_step)
        return points

    def _last_update(self, trainer: L.Trainer, module: Forecaster) -> dict[str, Tensor]:
        before, self._before = self._before, None
        (optimizer,) = trainer.optimizers
        if isinstance(optimizer, AdamW):
            rate = module.rate(optimizer, trainer.global_step - 1)
            return adamw_updates(module.net, optimizer, rate)
        if before is None:
            return {}
        pairs = zip(module.net.named_parameters(), before, strict=True)
        return {name: weight.detach() - old for (name, weight), old in pairs}

    def _probe(
        self, module: Forecaster, x: Tensor, target: Tensor, *, step: int
    ) -> dict[str, float]:
        points, forecast = activation_statistics(module.net, module.link, x)
        forecast_std, target_std = float(forecast.std()), float(target.std())
        constant = forecast_std < _CONSTANT * target_std
        if constant and not self._constant:
            log.warning(
                "the net forecasts the same value for every row at step %d: over %d training rows "
                "the standard deviation of the forecasts is %.1e, that of the targets %.1e. Lower "
                "optimizer.lr or raise schedule.warmup, and see stability/dead in TensorBoard",
                step,
                len(x),
                forecast_std,
                target_std,
            )
        self._constant = constant
        return points | {"stability/forecast_std": forecast_std}

    def _log(
        self, trainer: L.Trainer, points: dict[str, float], *, step: int | None = None
    ) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(points, step=trainer.global_step if step is None else step)


def _guard_counts(module: Forecaster) -> dict[str, float]:
    return {
        "stability/rollbacks": float(module.guard.rollbacks),
        "stability/nonfinite_steps": float(module.guard.nonfinite_steps),
    }


def norm_statistics(norms: Float[np.ndarray, " steps"], *, clip: float | None) -> dict[str, float]:
    """Return the quantiles of the finite gradient norms, and the share above `clip`."""
    norms = norms[np.isfinite(norms)]
    if not norms.size:
        return {}
    quantiles = np.quantile(norms, (0.5, 0.99, 1.0)).tolist()
    points = {
        f"stability/gradient_norm_{name}": value
        for name, value in zip(("p50", "p99", "max"), quantiles, strict=True)
    }
    return points | ({"stability/clipped_share": float(np.mean(norms > clip))} if clip else {})


def _probe_rows(trainer: L.Trainer, net: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return evenly spaced training rows and targets in the net's precision, if they are known."""
    loader = trainer.train_dataloader
    if not isinstance(loader, TrainBatches | TrainCalls):
        return None
    every = max(1, len(loader.target) // _PROBE_ROWS)
    dtype = next(net.parameters()).dtype
    rows = (part[::every][:_PROBE_ROWS].to(dtype) for part in (loader.x, loader.target))
    return next(rows), next(rows)


def update_ratios(net: nn.Module, updates: dict[str, Tensor]) -> dict[str, float]:
    """Return L2(update) / L2(weights after it) of each module with parameters of its own."""
    ratios = {}
    for name, module in net.named_modules():
        weights = dict(module.named_parameters(prefix=name, recurse=False))
        moved = [updates[key] for key in weights if key in updates]
        if moved:
            sizes = torch.stack([*torch._foreach_norm([*moved, *weights.values()])]).square()
            ratio = sizes[: len(moved)].sum() / sizes[len(moved) :].sum()
            ratios[f"stability/update_ratio/{name or 'net'}"] = float(ratio.sqrt())
    return ratios


def adamw_updates(net: nn.Module, optimizer: Optimizer, lr: float) -> dict[str, Tensor]:
    """Compute the last update of AdamW from the moments after it.

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
    (beta1, beta2), step = group["betas"], float(states[0]["step"])
    roots = torch._foreach_sqrt([state["exp_avg_sq"] for state in states])
    torch._foreach_div_(roots, (1 - beta2**step) ** 0.5)
    torch._foreach_add_(roots, group["eps"])
    updates = torch._foreach_div([state["exp_avg"] for state in states], roots)
    torch._foreach_mul_(updates, lr / (1 - beta1**step))
    # weight decay applies to the weights before the step: (after + update) / (1 - decay)
    decay = lr * group["weight_decay"]
    torch._foreach_add_(updates, weights, alpha=decay)
    torch._foreach_div_(updates, decay - 1)
    return dict(zip(named, updates, strict=True))


@torch.no_grad()
def activation_statistics(
    net: nn.Module, link: Callable[[Tensor], Tensor], x: Float[Tensor, "rows features"]
) -> tuple[dict[str, float], Float[Tensor, " rows"]]:
    """Return the saturated and dead shares of every activation and the link, and the forecasts.

    Args:
        net: evaluated without dropout; its modes are restored.
        link: raw score -> forecast.
        x: the probe.
    """
    slopes: dict[str, Tensor] = {}
    hooks = list(_slope_hooks(net, slopes))
    try:
        with _evaluation_mode(net):
            score = net(x)
    finally:
        for hook in hooks:
            hook.remove()
    slopes["link"] = slope(link, score)
    points = {}
    for name, values in slopes.items():
        flat = values.abs() < _SATURATED_SLOPE
        points[f"stability/saturated/{name}"] = float(flat.float().mean())
        if name != "link":
            points[f"stability/dead/{name}"] = float(flat.all(dim=0).float().mean())
    return points, link(score)


def _slope_hooks(
    net: nn.Module, slopes: dict[str, Tensor]
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Store the slope of each activation before it runs, as it may work in place."""

    def store_slope(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            slopes[name] = slope(module.forward, args[0])

        return hook

    for name, module in net.named_modules():
        if isinstance(module, _ACTIVATIONS):
            yield module.register_forward_pre_hook(store_slope(name or "net"))


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the derivative of an elementwise function."""
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_()
        return torch.autograd.grad(function(leaf.clone()).sum(), leaf)[0]


@contextmanager
def _evaluation_mode(net: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Histograms(Callback):
    """Logs histograms of weights, gradients and val forecasts to TensorBoard.

    A net changes most at first, so histograms are logged at steps 64, 128, 256, ... and then every
    `every_n_steps`. The compiled engine logs at the end of the call in which one is due.

    Args:
        every_n_steps: optimizer steps between two histograms, once doubling takes longer.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Count from the step that training starts from."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Log when due, at the step of Lightning's last loss."""
        step, every = trainer.global_step, self.every_n_steps
        if histograms_due(step, every) > histograms_due(self._last_step, every):
            self._last_step = step
            self._log(trainer, _weights_and_gradients(trainer, pl_module), step=step - 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the final weights; a resume from here drops the points again."""
        step = trainer.global_step
        if step > self._last_step:
            self._log(trainer, _weights_and_gradients(trainer, pl_module), step=step)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the val forecasts of rank 0."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, Forecaster | PopulationForecaster)
        forecasts = pl_module.val_forecasts()
        every = -(-forecasts.size // _HISTOGRAM_FORECASTS) or 1
        step = max(0, trainer.global_step - 1)
        self._log(trainer, {"val/score": forecasts[::every]}, step=step)

    def _log(
        self, trainer: L.Trainer, histograms: dict[str, Float[np.ndarray, " values"]], *, step: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                continue
            for tag, values in histograms.items():
                finite = values[np.isfinite(values)]
                if finite.size:
                    logger.experiment.add_histogram(
                        tag, finite, global_step=step, bins=_HISTOGRAM_BINS
                    )


def histograms_due(step: int, every: int) -> int:
    """Return how many histograms are due up to a step.

    >>> [histograms_due(step, 500) for step in (63, 64, 128, 499, 500, 999, 1000)]
    [0, 1, 2, 3, 4, 4, 5]
    """
    doubled = (min(step, every - 1) // _FIRST_HISTOGRAM).bit_length()
    return doubled + step // every


def _weights_and_gradients(
    trainer: L.Trainer, module: L.LightningModule
) -> dict[str, Float[np.ndarray, " values"]]:
    """Return the weights; of a single net also the gradients of the probe."""
    if isinstance(module, PopulationForecaster):
        return _flat_matrices("weights", module.living_weights(), dims=3)
    assert isinstance(module, Forecaster)
    histograms = _flat_matrices("weights", dict(module.net.named_parameters()), dims=2)
    if (probe := _probe_rows(trainer, module.net)) is not None:
        histograms |= _flat_matrices("gradients", probe_gradients(module, *probe), dims=2)
    return histograms


def _flat_matrices(
    kind: str, named: dict[str, Tensor], *, dims: int
) -> dict[str, Float[np.ndarray, " values"]]:
    """Return the values of the tensors with at least `dims` dimensions, by tag."""
    return {
        f"{kind}/{name.removesuffix('.weight')}": value.detach().double().cpu().numpy().reshape(-1)
        for name, value in named.items()
        if value.ndim >= dims
    }


def probe_gradients(
    module: Forecaster, x: Float[Tensor, "rows features"], target: Float[Tensor, " rows"]
) -> dict[str, Tensor]:
    """Return the gradient of the objective without dropout, leaving the training state untouched.

    Args:
        module: its net, link and loss are used.
        x: rows.
        target: of the rows.
    """
    trained = {name: p for name, p in module.net.named_parameters() if p.requires_grad}
    with torch.enable_grad(), _evaluation_mode(module.net):
        loss = module.loss(module(x), target)
        parts = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: part for name, part in zip(trained, parts, strict=True) if part is not None}
