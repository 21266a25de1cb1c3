"""Where in an epoch a checkpoint goes on, in the counts of Lightning's loops.

Lightning goes on exactly from the state that its loops have at the end of a batch with which no
validation is due, and at the end of an epoch. A checkpoint is written between two steps, once the
first one's points are drawn and its validation is over, and is given the counts of such a state.
"""

from typing import Any

import lightning as L
from lightning.pytorch.loops.loop import _Loop

from robust_fin.data.batches import Call
from robust_fin.data.population import Window


def steps_of(batch: object) -> int:
    """How far a batch moves the place in the epoch."""
    if isinstance(batch, Window):
        return batch.stop - batch.start
    return len(batch.rows) if isinstance(batch, Call) else 1


def before_batch(checkpoint: dict[str, Any], batch: object) -> None:
    """Take back a batch that was fetched and not yet trained on.

    Args:
        checkpoint: as dumped when a batch starts; changed in place.
        batch: that one.
    """
    loops = checkpoint["loops"]["fit_loop"]
    for part in _batches(loops):
        part["ready"] -= 1
    (loader,) = loops["state_dict"]["combined_loader"]
    loader["next_batch"] -= steps_of(batch)
    _as_a_batch_ends(loops)


def amid_epoch(checkpoint: dict[str, Any]) -> None:
    """Take back the end of an epoch that was cut short, which Lightning counts as a whole one.

    Args:
        checkpoint: as dumped at the end of the epoch; changed in place.
    """
    loops = checkpoint["loops"]["fit_loop"]
    for part in ("current", "total"):
        loops["epoch_progress"][part]["processed"] -= 1
    _as_a_batch_ends(loops)


def enter_next_epoch(trainer: L.Trainer) -> None:
    """Start the next epoch from a checkpoint of the end of one, when `trainer.max_steps` is set.

    Lightning would take the epoch for an unfinished one, end it a second time, and pass over the
    order of rows of the next.
    """
    loop = trainer.fit_loop
    if not loop.restarted_on_epoch_end:
        return
    loop.epoch_progress.increment_completed()
    _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]
    loop.reset_restart_stage()
    loop.epoch_loop.reset_restart_stage()
    loader = trainer.train_dataloader
    if loader is not None:
        loader.load_state_dict({"next_batch": 0})


def nothing_left(trainer: L.Trainer, checkpoint: dict[str, Any]) -> bool:
    """Whether the fit is over where a checkpoint goes on."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    limits = ((trainer.max_epochs, epochs), (trainer.max_steps, checkpoint["global_step"]))
    return any(limit is not None and -1 < limit <= done for limit, done in limits)


def next_point(checkpoint: dict[str, Any]) -> int:
    """The step on the x-axis of the curves that a checkpoint goes on with."""
    loops = checkpoint["loops"]["fit_loop"]
    total = loops["epoch_loop.batch_progress"]["total"]
    batch_ends = total["completed"] < total["processed"]  # and its step is not counted yet
    return int(loops["epoch_loop.state_dict"]["_batches_that_stepped"]) + batch_ends


def _batches(loops: dict[str, Any]) -> list[dict[str, int]]:
    progress = loops["epoch_loop.batch_progress"]
    return [progress["current"], progress["total"]]


def _as_a_batch_ends(loops: dict[str, Any]) -> None:
    for part in _batches(loops):
        part["completed"] -= 1
    loops["epoch_loop.batch_progress"]["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
