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
from robust_fin.data.datamodule import MemberData, StepWindow
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


class MemberCurves:
    """Draws the points of the training curves that fall due within a window."""

    def draw(
        self,
        loggers: Sequence[Logger],
        results: Sequence[StepResult],
        *,
        first: int,
        count: int,
        every: int,
    ) -> None:
        """Draw a window.

        Args:
            loggers: of the Trainer.
            results: of the members that took all their steps.
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
    """Mean and band at step `at` of a window of `count`, in whose course each did its own."""
    places = [at * len(one.loss) // count for one in results]
    loss = torch.stack([one.loss[at] for one, at in zip(results, places, strict=True)]).double()
    norm = torch.stack([one.gradient_norm[at] for one, at in zip(results, places, strict=True)])
    edges = torch.quantile(loss, torch.tensor([0.025, 0.975], dtype=loss.dtype))
    values = (loss.mean(), edges[0], edges[1])
    band = {f"members/train/objective_{k}": float(v) for k, v in zip(BAND, values, strict=True)}
    return band | {
        "train/objective": float(loss.mean()),
        "train/gradient_norm": float(norm.mean()),
        "members/train/gradient_norm_max": float(norm.max()),
    }


class PopulationForecaster(L.LightningModule):
    """Trains members to forecast the rank of the forward return, each as a run of its own would.

    Args:
        net: whose architecture the members have.
        members: their settings.
        states: their weights.
        sets: what they train on and are chosen on.
        link: raw score -> forecast, in rank units.
        engine: does their steps.
        pace: what each member does in a window.
        monitor: figure of the val span that each member's best weights are chosen by.
        mode: `max` or `min` of it.
        workers: threads that share the members; the numbers do not depend on it.
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
        self._architecture = (net,)  # in a tuple, or its weights would be the module's own
        self.members, self.states, self.sets, self.link = tuple(members), states, sets, link
        self.engine, self.pace = engine, pace
        self.monitor, self.sign = monitor.removeprefix("val/"), 1.0 if mode == "max" else -1.0
        self.automatic_optimization = False
        self.objective = MeanMetric(nan_strategy="disable")
        self.curves = MemberCurves()
        self._forecasts: dict[int, Float[np.ndarray, " rows"]] = {}  # of val, by data set
        self._pool = ThreadPoolExecutor(workers)
        self._settled = False
        self.anchor = nn.Parameter(torch.zeros(()))  # several processes want a module to have one

    def configure_optimizers(self) -> None:
        """None that Lightning would step; AdamW's state is the members' own."""

    def on_train_epoch_start(self) -> None:
        """A mean over the epoch starts afresh."""
        self.objective.reset()

    def training_step(self, batch: StepWindow, batch_idx: int) -> None:  # noqa: ARG002
        """A window of steps for every living member."""
        window = self._cut(batch)
        first, count = self.global_step, window.stop - window.start
        results = self._run(window)
        add_optimizer_steps(self.trainer.fit_loop, count)
        self._report_frozen(results, first)
        for k, one in results.items():
            self.states.note_norms(k, one.gradient_norm[: one.first_bad])
        taken = [one for one in results.values() if one.first_bad is None]
        if taken:
            losses = torch.cat([one.loss for one in taken])
            self.objective.update(losses)
            self.log("train/objective", losses.mean(), prog_bar=True, logger=False)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        self.curves.draw(self._loggers(), taken, first=first, count=count, every=every)

    def validation_step(self, batch: int, batch_idx: int) -> None:  # noqa: ARG002
        """Score the val span of one data set with all its members."""
        one = self.sets[batch]
        members = [k for k in self._living() if self.members[k].data == batch]
        if not members:
            return
        yardstick = Yardstick(
            one.val.target.double().numpy(),
            one.val.outcome.double().numpy(),
            train_median=one.train_median,
            train_mean=one.train_mean,
        )
        nets = self._nets(self.states.weights, members, one)
        found = SpanForecast.score(nets, one.val.x, yardstick, keep=0)
        for member, figures in zip(members, found.members, strict=True):
            if not self.trainer.sanity_checking:
                self.states.keep_better(member, self.sign * figures[self.monitor])
        self._forecasts[batch] = found.forecast.score
        for name, value in yardstick.metrics(found.forecast.score).items():
            self.log(f"val/{name}", value, prog_bar=name == "skill", batch_size=1)
        for name, value in member_spread(found.members).items():
            self.log(f"members/val/{name}", value, batch_size=1)

    def on_fit_end(self) -> None:
        """Without a val span the last weights count."""
        self.states.choose_last()
        self._pool.shutdown()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the counts of windows."""
        convert_loop_counts(checkpoint, completed_calls=self.pace.plan.completed_calls)

    def nets(self, members: Sequence[int], *, data: int) -> Nets:
        """Some members of one data set, with the weights that count."""
        return self._nets(self.states.best, members, self.sets[data])

    def _nets(self, flat: Tensor, members: Sequence[int], data: MemberData) -> Nets:
        stack = self.states.stack(flat, members)
        return Nets(self.architecture, self.link, data.to_rank, stack)

    def val_forecasts(self) -> Float[np.ndarray, " rows"]:
        """The members' mean forecasts of the val spans, at the last validation."""
        return np.concatenate([np.zeros(0), *self._forecasts.values()])

    def living_weights(self) -> dict[str, Tensor]:
        """The weights as they are trained, with a leading axis of members."""
        return self.states.stack(self.states.weights, self._living())

    @property
    def architecture(self) -> nn.Module:
        """A net whose weights do not count."""
        return self._architecture[0]

    def _loggers(self) -> list[Logger]:
        return [one for one in self.loggers if isinstance(one, Logger)]

    def _living(self) -> list[int]:
        return torch.nonzero(self.states.living())[:, 0].tolist()

    def _cut(self, window: StepWindow) -> StepWindow:
        """Up to max_steps; the other steps are given back to the loader."""
        count = limit_to_max_steps(self.trainer, window.stop - window.start)
        return window._replace(stop=window.start + count)

    def _run(self, window: StepWindow) -> dict[int, StepResult]:
        """Results of the living members; blocks of members go to the threads."""
        self.pace.enter(window.epoch)
        blocks = self._blocks(window)
        if blocks and not self._settled:
            self._settle(blocks[0], window)
            blocks = self._blocks(window)

        def run(block: Sequence[int]) -> dict[int, StepResult]:
            states = [self.states.state(k) for k in block]
            work = [self.pace.work(k, window) for k in block]
            results = self.engine.run(states, work)
            for k, state in zip(block, states, strict=True):
                self.states.count[k] = state.count
            return dict(zip(block, results, strict=True))

        living, found = set(self._living()), dict[int, StepResult]()
        for part in self._pool.map(run, blocks):
            found |= {k: one for k, one in part.items() if k in living}
        return self._merged(found)

    def _blocks(self, window: StepWindow) -> list[Sequence[int]]:
        """Members of this process that are taken together, at least one of them living.

        A frozen one keeps its place: the last bits of the others depend on how many they are.
        """
        living, own = set(self._living()), range(global_rank(), len(self.members), world_size())
        every = self.pace.blocks(own, window, size=self.engine.block)
        return [block for block in every if living.intersection(block)]

    def _merged(self, own: dict[int, StepResult]) -> dict[int, StepResult]:
        """What the members of all processes did, and their states in every process."""
        if not is_distributed():
            return own
        # copies, because a message of a view carries all that it is a view of
        ready = {k: (self.states.state(k).copied(), one.copied()) for k, one in own.items()}
        found = {k: both for part in all_gather(ready) for k, both in part.items()}
        for k, (state, _) in found.items():
            self.states.take(k, state)
        return {k: found[k][1] for k in sorted(found)}

    def _settle(self, block: Sequence[int], window: StepWindow) -> None:
        """Let the engine measure, once and alone."""
        states = [self.states.state(k) for k in block]
        self.engine.settle(states, [self.pace.work(k, window) for k in block])
        self._settled = True
        log.info("members are taken %d at a time", self.engine.block)

    def _report_frozen(self, results: dict[int, StepResult], first: int) -> None:
        """Say which members stopped being finite, and stop when none is left."""
        for k, one in results.items():
            if one.first_bad is None:
                continue
            self.states.frozen_at[k] = self.states.count[k]
            log.warning(
                "member %d (seed %d) is frozen at its step %d: loss %s, gradient norm %s; it "
                "takes no part in the results",
                k,
                self.members[k].seed,
                int(self.states.count[k]),
                float(one.loss[one.first_bad]),
                float(one.gradient_norm[one.first_bad]),
            )
        for k in self.states.freeze_overflown():
            log.warning(
                "member %d (seed %d) is frozen at its step %d: a weight or moment is not finite; "
                "it takes no part in the results",
                k,
                self.members[k].seed,
                int(self.states.count[k]),
            )
        frozen = int((self.states.frozen_at != NEVER).sum())
        if frozen == len(self.members):
            raise NonFiniteError(
                f"all {frozen} members are frozen by step {first}: a loss or gradient of each is "
                "not finite. Lower optimizer.lr, or tame the features with transform=robust_clip"
            )
