"""Signals at a moment of a fit that a test chooses."""

import os

import lightning as L
from lightning.pytorch.callbacks import Callback

TARGET = "tests.signals.SignalAt"


class SignalAt(Callback):
    """Sends signals to its own process when a hook is first called at a step.

    Args:
        hook: its name.
        step: optimizer steps done by then.
        number: of the signal.
        times: how often it is sent, one right after the other.
        refit: in the refit, else in the fit that choices are made on.
    """

    def __init__(self, *, hook: str, step: int, number: int, times: int, refit: bool) -> None:
        """Nothing sent yet."""
        self.step, self.number, self.times, self.refit = step, number, times, refit
        setattr(self, hook, self.act)

    def act(self, trainer: L.Trainer, *_: object) -> None:
        """What the hook does."""
        if trainer.global_step == self.step and self.refit == (trainer.max_steps > 0):
            for _time in range(self.times):
                os.kill(os.getpid(), self.number)
            self.step = -1
