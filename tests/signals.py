"""A callback that sends signals at a chosen step of a fit."""

import os

import lightning as L
from lightning.pytorch.callbacks import Callback

TARGET = "tests.signals.SignalAt"


class SignalAt(Callback):
    """Sends signals to its own process when a hook is first called at a step.

    Args:
        hook: name of the hook.
        step: number of optimizer steps done.
        number: number of the signal.
        times: how often the signal is sent, without pause.
        refit: act in the refit instead of the first fit.
    """

    def __init__(self, *, hook: str, step: int, number: int, times: int, refit: bool) -> None:
        self.step, self.number, self.times, self.refit = step, number, times, refit
        setattr(self, hook, self.act)

    def act(self, trainer: L.Trainer, *_: object) -> None:
        """Send the signals if the step is reached."""
        if trainer.global_step == self.step and self.refit == (trainer.max_steps > 0):
            for _time in range(self.times):
                os.kill(os.getpid(), self.number)
            self.step = -1
