"""The LightningModule of a population: many nets of one architecture in one run.

A `training_step` is a window of optimizer steps that every member takes. A member whose loss or
gradient stops being finite is frozen before that step and reported; the others go on.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import nn
from torchmetrics import MeanMetric

from robust_fin.bundle import Nets, SpanForecast, spread
from robust_fin.data.population import MemberSet, TrainWindows, Window
from robust_fin.errors import NonFiniteError
from robust_fin.metrics import Yardstick
from robust_fin.training.calls import count_steps, translate_loops
from robust_fin.training.member_curves import MemberCurves
from robust_fin.training.member_states import NEVER, MemberStates
from robust_fin.training.member_steps import MemberEngine
from robust_fin.training.member_work import MemberPace
from robust_fin.training.members import Member
from robust_fin.training.module import Link
from robust_fin.training.steps import StepResult

log = logging.getLogger(__name__)


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
        sets: Sequence[MemberSet],
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
        self._pool = ThreadPoolExecutor(workers)
        self._settled = False

    def configure_optimizers(self) -> None:
        """None that Lightning would step; AdamW's state is the members' own."""

    def on_train_epoch_start(self) -> None:
        """A mean over the epoch starts afresh."""
        self.objective.reset()

    def training_step(self, batch: Window, batch_idx: int) -> None:  # noqa: ARG002
        """A window of steps for every living member."""
        window = self._cut(batch)
        first, count = self.global_step, window.stop - window.start
        results = self._run(window)
        count_steps(self.trainer.fit_loop, count)
        self._report_frozen(results, first)
        taken = [one for one in results.values() if len(one.loss) and one.first_bad is None]
        if taken:
            mean = torch.stack([one.loss.mean() for one in taken]).mean()
            self.objective.update(mean)
            self.log("train/objective", mean, prog_bar=True, logger=False)
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
        nets = Nets(self.architecture, self.link, self.states.stack(self.states.weights, members))
        found = SpanForecast.of(nets, one.val.x, yardstick, keep=0)
        for member, figures in zip(members, found.members, strict=True):
            self.states.keep_better(member, self.sign * figures[self.monitor])
        for name, value in yardstick.figures(found.forecast.score).items():
            self.log(f"val/{name}", value, prog_bar=name == "skill", batch_size=1)
        for name, value in spread(found.members).items():
            self.log(f"members/val/{name}", value, batch_size=1)

    def on_fit_start(self) -> None:
        """Draw the band of the members."""
        self.curves.lay_out(self._loggers())

    def on_fit_end(self) -> None:
        """Without a val span the last weights count."""
        if not any(len(one.val.target) for one in self.sets):
            self.states.choose_last()
        self._pool.shutdown()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the counts of windows."""
        translate_loops(checkpoint, calls_done=self.pace.plan.calls_done)

    def nets(self, members: Sequence[int]) -> Nets:
        """Some members with the weights that count."""
        return Nets(self.architecture, self.link, self.states.stack(self.states.best, members))

    @property
    def architecture(self) -> nn.Module:
        """A net whose weights do not count."""
        return self._architecture[0]

    def _loggers(self) -> list[Logger]:
        return [one for one in self.loggers if isinstance(one, Logger)]

    def _living(self) -> list[int]:
        return torch.nonzero(self.states.living())[:, 0].tolist()

    def _cut(self, window: Window) -> Window:
        """Up to max_steps; the other steps are given back to the loader."""
        left = self.trainer.max_steps - self.global_step
        if self.trainer.max_steps < 0 or left >= window.stop - window.start:
            return window
        loader = self.trainer.train_dataloader
        assert isinstance(loader, TrainWindows)
        loader.give_back(window.stop - window.start - left)
        return window._replace(stop=window.start + left)

    def _run(self, window: Window) -> dict[int, StepResult]:
        """Results by member; blocks of members go to the threads."""
        self.pace.enter(window.epoch)
        living = self._living()
        if not self._settled:
            self._settle(
                next(iter(self.pace.blocks(living, window, size=self.engine.block))), window
            )
        blocks = self.pace.blocks(living, window, size=self.engine.block)

        def run(block: Sequence[int]) -> dict[int, StepResult]:
            states = [self.states.state(k) for k in block]
            work = [self.pace.work(k, window) for k in block]
            results = self.engine.run(states, work)
            for k, state in zip(block, states, strict=True):
                self.states.count[k] = state.count
            return dict(zip(block, results, strict=True))

        found: dict[int, StepResult] = {}
        for part in self._pool.map(run, blocks):
            found |= part
        return found

    def _settle(self, block: Sequence[int], window: Window) -> None:
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
                "member %d (seed %d) is frozen at its step %d: loss %s, gradient norm %s; it keeps "
                "the weights before that step and takes no part in the results",
                k,
                self.members[k].seed,
                int(self.states.count[k]),
                float(one.loss[one.first_bad]),
                float(one.gradient_norm[one.first_bad]),
            )
        frozen = int((self.states.frozen_at != NEVER).sum())
        if frozen == len(self.members):
            raise NonFiniteError(
                f"all {frozen} members are frozen by step {first}: a loss or gradient of each is "
                "not finite. Lower optimizer.lr, or tame the features with transform=robust_clip"
            )
