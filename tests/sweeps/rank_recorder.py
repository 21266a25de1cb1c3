"""A callback that records what each rank trained on: +callbacks.rank_recorder._target_=..."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch


class RankRecorder(L.Callback):
    """Appends a line to rank_RANK.jsonl in the run folder at the end of each fit."""

    def __init__(self) -> None:
        self.rows = 0

    def on_train_batch_start(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        self.rows += len(batch[0])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = torch.cat([one.detach().reshape(-1) for one in pl_module.parameters()])
        line = {
            "world": trainer.world_size,
            "pid": os.getpid(),
            "lr": trainer.optimizers[0].defaults["lr"],
            "rows": self.rows,
            "epochs": trainer.current_epoch,
            "weights": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        }
        path = Path(trainer.default_root_dir) / f"rank_{trainer.global_rank}.jsonl"
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_ranks(run: Path) -> list[dict[str, Any]]:
    """Return the records of all ranks for the first fit of a run."""
    paths = sorted(run.glob("rank_*.jsonl"))
    return [json.loads(path.read_text().splitlines()[0]) for path in paths]
