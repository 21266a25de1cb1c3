"""How weights, gradients and forecasts are spread, on TensorBoard's Histograms page.

| tag | of what |
|---|---|
| weights/LAYER | the entries of its matrix; of a population those of all living members |
| gradients/LAYER | of the objective of the probe rows, without dropout; one net only |
| val/score | forecasts of the val span, in rank units, at every validation |

The probe is the one of `robust_fin.training.diagnostics`: 256 training rows, the same every time.
The gradient is that of the probe and not of the last batch, so that both engines show the same.
Vectors, which are biases and the scales of norms, are left out: their few numbers are no histogram.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from robust_fin.training.diagnostics import probe_rows
from robust_fin.training.module import Forecaster
from robust_fin.training.population import PopulationForecaster

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
        if milestone(step, self.every_n_steps) > milestone(self._seen, self.every_n_steps):
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


def milestone(step: int, every: int) -> int:
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
    return found if probe is None else found | _matrices("gradients", gradients(module, *probe))


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


def gradients(
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
