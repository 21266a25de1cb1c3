"""What a run must keep to go on exactly and Lightning's checkpoints leave out."""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor, nn
from torchmetrics import Metric

from robust_fin.training.stability import StepGuard

_NORMS = ("norms", "window")  # of the guard


def session_state(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """Random state, metrics amid an epoch, figures of val, gradient norms, early stopping."""
    figures = trainer._logger_connector._callback_metrics
    state: dict[str, Any] = {
        "rng_state": torch.get_rng_state(),
        "metrics": metric_states(module),
        "callback_metrics": {name: _cpu(value) for name, value in figures.items()},
        "stopped": trainer.should_stop and not _out_of_time(trainer),
    }
    if isinstance(guard := getattr(module, "guard", None), StepGuard):
        state["norms"] = {name: list(getattr(guard, name)) for name in _NORMS}
    if torch.cuda.is_available():
        state["cuda_rng_state"] = torch.cuda.get_rng_state_all()
    return state


def restore_metrics(trainer: L.Trainer, module: L.LightningModule, state: dict[str, Any]) -> None:
    """What must be there even if no step is left to do: the metrics, and that training stopped."""
    load_metric_states(module, state["metrics"])
    for name, norms in state.get("norms", {}).items():
        getattr(module.guard, name).extend(norms)
    if state["stopped"]:
        trainer.should_stop = True


def restore_session(trainer: L.Trainer, state: dict[str, Any]) -> None:
    """Random state and figures, after everything that could have drawn from or cleared them."""
    torch.set_rng_state(state["rng_state"])
    if "cuda_rng_state" in state:
        torch.cuda.set_rng_state_all(state["cuda_rng_state"])
    trainer._logger_connector._callback_metrics.update(state["callback_metrics"])


def metric_states(module: nn.Module) -> dict[str, Any]:
    """The state of every metric in the middle of its updates, by name."""
    return {
        name: {"updates": one._update_count, "values": _cpu(one.metric_state)}
        for name, one in module.named_modules()
        if isinstance(one, Metric)
    }


def load_metric_states(module: nn.Module, states: dict[str, Any]) -> None:
    """Go on with the updates that the metrics had."""
    for name, one in module.named_modules():
        if isinstance(one, Metric) and name in states:
            for key, value in states[name]["values"].items():
                setattr(one, key, value)
            one._update_count, one._computed = states[name]["updates"], None


def forget_points(loggers: Iterable[Logger], *, first: int) -> None:
    """Let TensorBoard drop the points of a session that went further than its checkpoint.

    Args:
        loggers: of the Trainer.
        first: step of the first point that will be drawn again.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            start = SessionLog(status=SessionLog.START)
            writer = logger.experiment._get_file_writer()
            writer.add_event(Event(step=first, session_log=start))


def _cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cpu(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_cpu(one) for one in value]
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _out_of_time(trainer: L.Trainer) -> bool:
    """Whether `trainer.max_time` ended the fit; more of it lets the fit go on."""
    timers = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
    left = [one.time_remaining() for one in timers]
    return any(seconds is not None and seconds <= 0 for seconds in left)
