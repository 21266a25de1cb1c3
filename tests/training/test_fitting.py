"""Training on several ranks: equal weights, one stop, and every row once."""

import os
import signal
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from robust_fin.data.batches import Batch, EpochOrder, ScoreBatches, ScoredBatch, TrainBatches
from robust_fin.errors import Interrupted
from robust_fin.metrics import span_metrics
from robust_fin.runtime.process_state import RankError
from robust_fin.training.fitting import WeightAgreement, distributed_callbacks, weights_hash
from robust_fin.training.module import SpanScores
from robust_fin.training.recovery.checkpoints import LastCheckpoint
from tests.runtime.forked_ranks import run_forked_ranks
from tests.training.test_module import data, forecaster, net

GLOBAL_BATCH, EPOCHS = 32, 3


def fit(world: int, *callbacks: L.Callback, rank: int = 0, epochs: int = EPOCHS) -> torch.Tensor:
    """Return the weights after a few epochs on the rows of `data`, on one of `world` ranks."""
    x, target = data()
    order = EpochOrder(
        len(x), batch_size=GLOBAL_BATCH // world, seed=0, rank=rank, world_size=world
    )
    module = forecaster(net())
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=epochs,
        gradient_clip_val=0.05,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(one, LastCheckpoint) for one in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, TrainBatches(x, target, order=order))
    return torch.cat([one.detach().reshape(-1) for one in module.net.parameters()])


class Nudge(L.Callback):
    """Changes one weight of one rank by one part in ten million."""

    def __init__(self, rank: int, *, epoch: int) -> None:
        self.rank, self.epoch = rank, epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank == self.rank and trainer.current_epoch == self.epoch:
            with torch.no_grad():
                pl_module.net.head.bias.mul_(1 + 2e-7)


def test_two_ranks_train_the_weights_of_one_process_with_the_same_global_batch(
    tmp_path: Path,
) -> None:
    one = fit(1)
    two = run_forked_ranks(
        2, lambda rank: fit(2, *distributed_callbacks(), rank=rank).numpy(), tmp_path
    )
    assert np.array_equal(two[0], two[1])
    difference = np.linalg.norm(two[0] - one.numpy()) / np.linalg.norm(one.numpy())
    assert difference < 1e-6


def test_another_global_batch_trains_other_weights(tmp_path: Path) -> None:
    # both take the first half of each batch
    found = run_forked_ranks(
        2, lambda _: fit(2, *distributed_callbacks(), rank=0).numpy(), tmp_path
    )
    one = fit(1).numpy()
    assert np.linalg.norm(found[0] - one) / np.linalg.norm(one) > 1e-3


def test_weights_that_differ_in_one_bit_stop_all_ranks(tmp_path: Path) -> None:
    found = run_forked_ranks(
        2, lambda rank: fit(2, Nudge(1, epoch=1), WeightAgreement(), rank=rank), tmp_path
    )
    assert [type(one) for one in found] == [RankError, RankError]
    assert str(found[0]).startswith(
        "the weights at the end of epoch 1 (step 20) differ between the ranks: rank 0 has "
    )
    assert "; rank 1 has " in str(found[0])
    assert str(found[0]) == str(found[1])


def test_signal_to_one_rank_stops_all_ranks_after_the_same_step(tmp_path: Path) -> None:
    class Ask(L.Callback):
        """Sends Ctrl-C to one rank in the middle of an epoch."""

        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == 14 and trainer.global_rank == 1:
                os.kill(os.getpid(), signal.SIGINT)

    def work(rank: int) -> torch.Tensor:
        last = LastCheckpoint(tmp_path, every_n_steps=10_000)
        return fit(2, Ask(), *distributed_callbacks(), last, rank=rank, epochs=100_000)

    found = run_forked_ranks(2, work, tmp_path)
    assert [type(one) for one in found] == [Interrupted, Interrupted]
    assert str(found[0]) == str(found[1])
    stopped = int(str(found[0]).split("step ")[1].split(";")[0])
    assert 14 <= stopped < 5_000
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == stopped


def test_single_process_has_no_distributed_callbacks() -> None:
    assert distributed_callbacks() == []


def test_weights_hash_depends_on_names_shapes_dtypes_and_every_bit() -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    changed = [
        {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor(3)},
        {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3)},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64), "b": torch.tensor(3)},
        {"a": torch.nextafter(weights["a"], torch.tensor(9.0)), "b": torch.tensor(3)},
    ]
    assert len({weights_hash(one) for one in [weights, *changed]}) == 5
    assert weights_hash(dict(reversed(weights.items()))) == weights_hash(weights)
    assert weights_hash({"a": torch.ones(4)[::2]}) == weights_hash({"a": torch.ones(2)})


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric SpanScores")
@pytest.mark.parametrize(("rows", "world"), [(10, 3), (9, 3), (3, 2), (1, 3), (7, 1)])
def test_every_val_row_is_scored_once_and_in_time_order(
    rows: int, world: int, tmp_path: Path
) -> None:
    number = torch.arange(rows, dtype=torch.float32)
    draw = torch.Generator().manual_seed(rows)
    target = torch.rand(rows, generator=draw)
    span = ScoredBatch(number[:, None], target, target - 0.5)

    def work(rank: int) -> tuple[list[float], dict[str, float]]:
        scores = SpanScores(train_median=0.5, train_mean=0.4)
        for batch in ScoreBatches(span, batch_size=2, rank=rank, world_size=world):
            scores.update(batch.x[:, 0], batch.target, batch.outcome)
        found = {name: float(value) for name, value in scores.compute().items()}
        with scores.sync_context():
            gathered = scores.score if isinstance(scores.score, torch.Tensor) else scores.score[0]
        return gathered.tolist(), found

    wanted = span_metrics(
        number.double().numpy(),
        target.double().numpy(),
        (target - 0.5).double().numpy(),
        train_median=0.5,
        train_mean=0.4,
    )
    for seen, figures in run_forked_ranks(world, work, tmp_path):
        assert seen == list(range(rows))
        assert figures == pytest.approx(wanted, rel=1e-6, nan_ok=True)


def test_global_batch_is_split_evenly_over_the_ranks() -> None:
    x = torch.arange(40.0)[:, None]
    alone = TrainBatches(x, x[:, 0], order=EpochOrder(40, batch_size=6, seed=3))
    ranks = [
        TrainBatches(x, x[:, 0], order=EpochOrder(40, batch_size=2, seed=3, rank=k, world_size=3))
        for k in range(3)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert isinstance(whole, Batch)
        assert torch.equal(torch.cat([one.target for one in parts]), whole.target)
