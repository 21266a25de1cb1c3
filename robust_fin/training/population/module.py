"""The LightningModule of a population, and its curves."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torchmetrics import MeanMetric

from robust_fin.bundle.predictions import Nets, SpanForecast, member_spread
from robust_fin.data.batches import StepWindow
from robust_fin.data.datamodule import MemberData
from robust_fin.errors import NonFiniteError
from robust_fin.metrics import Yardstick
from robust_fin.runtime.rank_info import all_gather, global_rank, is_distributed, world_size
from robust_fin.training.engine.steps import StepResult, steps_to_log
from robust_fin.training.lightning_loop import (
    add_optimizer_steps,
    convert_loop_counts,
    limit_to_max_steps,
)
from robust_fin.training.module import Link
from robust_fin.training.population.members import NEVER, Member, MemberStates
from robust_fin.training.population.steps import MemberEngine, MemberPace

log = logging.getLogger(__name__)

BAND = ("mean", "low", "high")


def draw_curves(
    loggers: Sequence[Logger],
    results: Sequence[StepResult],
    *,
    first: int,
    count: int,
    every: int,
) -> None:
    """Log the points of the training curves that are due in a window.

    Args:
        loggers: of the Trainer.
        results: of the members that did all their steps.
        first: optimizer steps done before the window, on the scale of the largest data set.
        count: steps of the window on that scale.
        every: steps between two points; 0 draws none.
    """
    if not results or not loggers:
        return
    for at in steps_to_log(first, count, every=every):
        point = _point(results, at, count)
        for logger in loggers:
            logger.log_metrics(point, step=first + at)


def _point(results: Sequence[StepResult], at: int, count: int) -> dict[str, float]:
    """Return mean and band at step `at` of `count`; members may do fewer steps in the window."""
    steps = [at * len(result.loss) // count for result in results]
    pairs = list(zip(results, steps, strict=True))
    loss = torch.stack([result.loss[step] for result, step in pairs]).double()
    norm = torch.stack([result.gradient_norm[step] for result, step in pairs])
    edges = torch.quantile(loss, torch.tensor([0.025, 0.975], dtype=loss.dtype))
    values = (loss.mean(), edges[0], edges[1])
    band = {f"members/train/objective_{k}": float(v) for k, v in zip(BAND, values, strict=True)}
    return band | {
        "train/objective": float(loss.mean()),
        "train/gradient_norm": float(norm.mean()),
        "members/train/gradient_norm_max": float(norm.max()),
    }


class PopulationForecaster(L.LightningModule):
    """Trains members to forecast the rank of the forward return, each like a single run.

    Args:
        net: has the members' architecture.
        members: their settings.
        states: their weights.
        sets: their data sets.
        link: raw score -> forecast, in rank units.
        engine: runs their steps.
        pace: the steps of each member in a window.
        monitor: metric on val that chooses each member's best weights.
        mode: `max` or `min`.
        workers: threads that share the members; results do not depend on it.
    """

    def __init__(
        self,
        net: nn.Module,
        members: Sequence[Member],
        *,
        states: MemberStates,
        sets: Sequence[MemberData],
        link: Link,
        engine: MemberEngine,
        pace: MemberPace,
        monitor: str,
        mode: str,
        workers: int,
    ) -> None:
        """Keep the parts."""
        super().__init__()
        self._architecture = (net,)  # in a tuple, so that its weights are not the module's
        self.members, self.states, self.sets, self.link = tuple(members), states, sets, link
        self.engine, self.pace = engine, pace
        self.monitor, self.sign = monitor.removeprefix("val/"), 1.0 if mode == "max" else -1.0
        self.automatic_optimization = False
        self.objective = MeanMetric(nan_strategy="disable")
        self._forecasts: dict[int, Float[np.ndarray, " rows"]] = {}  # of val, by data set
        self._pool = ThreadPoolExecutor(workers)
        self._settled = False
        self.anchor = nn.Parameter(torch.zeros(()))  # DDP needs a module with a parameter

    def configure_optimizers(self) -> None:
        """Return no optimizer: AdamW's state is the members' own."""

    def on_train_epoch_start(self) -> None:
        """Reset the mean objective of the epoch."""
        self.objective.reset()

    def training_step(self, batch: StepWindow, batch_idx: int) -> None:  # noqa: ARG002
        """Run a window of steps for every living member."""
        first = self.global_step
        count = limit_to_max_steps(self.trainer, batch.stop - batch.start)
        results = self._run_window(batch._replace(stop=batch.start + count))
        add_optimizer_steps(self.trainer, count)
        self._report_frozen(results, first)
        for k, result in results.items():
            self.states.update_norm_max(k, result.gradient_norm[: result.first_bad])
        complete = [result for result in results.values() if result.first_bad is None]
        if complete:
            losses = torch.cat([result.loss for result in complete])
            self.objective.update(losses)
            self.log("train/objective", losses.mean(), prog_bar=True, logger=False)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        loggers = [logger for logger in self.loggers if isinstance(logger, Logger)]
        draw_curves(loggers, complete, first=first, count=count, every=every)

    def validation_step(self, batch: int, batch_idx: int) -> None:  # noqa: ARG002
        """Score the val span of one data set with all its living members."""
        data = self.sets[batch]
        members = [k for k in self._living() if self.members[k].data == batch]
        if not members:
            return
        yardstick = Yardstick(
            data.val.target.double().numpy(),
            data.val.outcome.double().numpy(),
            train_median=data.train_median,
            train_mean=data.train_mean,
        )
        nets = self._nets(self.states.weights, members, data)
        span = SpanForecast.score(nets, data.val.x, yardstick, keep=0)
        for member, metrics in zip(members, span.members, strict=True):
            if not self.trainer.sanity_checking:
                self.states.keep_better(member, self.sign * metrics[self.monitor])
        self._forecasts[batch] = span.forecast.score
        for name, value in yardstick.metrics(span.forecast.score).items():
            self.log(f"val/{name}", value, prog_bar=name == "skill", batch_size=1)
        for name, value in member_spread(span.members).items():
            self.log(f"members/val/{name}", value, batch_size=1)

    def on_fit_end(self) -> None:
        """Choose the last weights of members without val, and stop the threads."""
        self.states.choose_last()
        self._pool.shutdown()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Convert the counters to windows."""
        convert_loop_counts(checkpoint, completed_calls=self.pace.plan.completed_calls)

    def nets(self, members: Sequence[int], *, data: int) -> Nets:
        """Return some members of one data set with their best weights."""
        return self._nets(self.states.best, members, self.sets[data])

    def _nets(self, flat: Tensor, members: Sequence[int], data: MemberData) -> Nets:
        stack = self.states.stack(flat, members)
        return Nets(self.architecture, self.link, data.to_rank, stack)

    def val_forecasts(self) -> Float[np.ndarray, " rows"]:
        """Return the members' mean forecasts of the val spans, at the last validation."""
        return np.concatenate([np.zeros(0), *self._forecasts.values()])

    def living_weights(self) -> dict[str, Tensor]:
        """Return the current weights of the living members, with a leading axis of members."""
        return self.states.stack(self.states.weights, self._living())

    @property
    def architecture(self) -> nn.Module:
        """A net of the members' architecture; its weights are not used."""
        return self._architecture[0]

    def _living(self) -> list[int]:
        return torch.nonzero(self.states.living())[:, 0].tolist()

    def _run_window(self, window: StepWindow) -> dict[int, StepResult]:
        """Run blocks of members on the threads, and return the results of the living members."""
        self.pace.enter(window.epoch)
        blocks = self._blocks(window)
        if blocks and not self._settled:
            self._settle(blocks[0], window)
            blocks = self._blocks(window)

        def run(block: Sequence[int]) -> dict[int, StepResult]:
            states = [self.states.state(k) for k in block]
            results = self.engine.run(states, [self.pace.work(k, window) for k in block])
            for k, state in zip(block, states, strict=True):
                self.states.count[k] = state.count
            return dict(zip(block, results, strict=True))

        living, results = set(self._living()), dict[int, StepResult]()
        for part in self._pool.map(run, blocks):
            results |= {k: result for k, result in part.items() if k in living}
        return self._gather(results)

    def _blocks(self, window: StepWindow) -> list[Sequence[int]]:
        """Return the blocks of this process's members that have a living member.

        A frozen member keeps its place: the last bits of the others depend on the block's size.
        """
        living = set(self._living())
        of_process = range(global_rank(), len(self.members), world_size())
        blocks = self.pace.blocks(of_process, window, size=self.engine.block)
        return [block for block in blocks if living.intersection(block)]

    def _gather(self, results: dict[int, StepResult]) -> dict[int, StepResult]:
        """Share results and states of members between all processes."""
        if not is_distributed():
            return results
        # copies, because a pickled view carries the tensor that it is a view of
        ours = {k: (self.states.state(k).copied(), r.copied()) for k, r in results.items()}
        everyone = {k: pair for part in all_gather(ours) for k, pair in part.items()}
        for k, (state, _) in everyone.items():
            self.states.copy_state(k, state)
        return {k: everyone[k][1] for k in sorted(everyone)}

    def _settle(self, block: Sequence[int], window: StepWindow) -> None:
        """Let the engine choose its block size, once and on one thread."""
        states = [self.states.state(k) for k in block]
        self.engine.settle(states, [self.pace.work(k, window) for k in block])
        self._settled = True
        log.info("members are trained %d at a time", self.engine.block)

    def _report_frozen(self, results: dict[int, StepResult], first: int) -> None:
        """Log newly frozen members, and raise NonFiniteError if none is left."""
        for k, result in results.items():
            if result.first_bad is not None:
                self.states.frozen_at[k] = self.states.count[k]
                loss, norm = (float(values[result.first_bad]) for values in result[:2])
                self._warn_frozen(k, f"loss {loss}, gradient norm {norm}")
        for k in self.states.freeze_nonfinite():
            self._warn_frozen(k, "a weight or moment is not finite")
        frozen = int((self.states.frozen_at != NEVER).sum())
        if frozen == len(self.members):
            raise NonFiniteError(
                f"all {frozen} members are frozen by step {first}: a loss or gradient of each is "
                "not finite. Lower optimizer.lr, or limit outliers with transform=robust_clip"
            )

    def _warn_frozen(self, member: int, reason: str) -> None:
        log.warning(
            "member %d (seed %d) is frozen at its step %d: %s; it is left out of the results",
            member,
            self.members[member].seed,
            int(self.states.count[member]),
            reason,
        )
