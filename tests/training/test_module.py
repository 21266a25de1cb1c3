from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from scipy.stats import spearmanr
from torch import nn

from robust_fin.data.batches import EpochOrder, ScoreBatches, ScoredBatch, TrainBatches
from robust_fin.errors import NonFiniteError
from robust_fin.models.mlp import ResidualMLP, identity
from robust_fin.training.losses import huber, warmup_constant
from robust_fin.training.module import Forecaster, SpanScores
from robust_fin.training.recovery.guard import StopOnNonFiniteWeights, check_finite_weights

ROWS, BATCH = 320, 16


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 5, generator=generator)
    return x, torch.sigmoid(x[:, 0] + torch.randn(ROWS, generator=generator))


def batches_of(x: torch.Tensor, target: torch.Tensor, seed: int = 0) -> TrainBatches:
    return TrainBatches(x, target, order=EpochOrder(ROWS, batch_size=BATCH, seed=seed))


def net() -> ResidualMLP:
    torch.manual_seed(1)
    return ResidualMLP(
        5,
        hidden=[16, 8],
        residual=True,
        layer_norm=True,
        input_norm=True,
        dropout=0.0,
        head_start=None,
    )


def forecaster(module: nn.Module, *, lr: float = 0.01, warmup: int = 7) -> Forecaster:
    return Forecaster(
        module,
        link=identity,
        loss=partial(huber, delta=0.1),
        optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=1e-4),
        schedule=partial(warmup_constant, warmup=warmup, total=0),
        val=SpanScores(train_median=0.5, train_mean=0.5),
    )


def trainer(**settings: object) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.05,
        **{"max_epochs": 3, "logger": False, "callbacks": [StopOnNonFiniteWeights()], **settings},
    )


def test_trainer_matches_a_plain_pytorch_loop() -> None:
    x, target = data()
    batches = batches_of(x, target, seed=4)
    module = forecaster(net())
    trainer().fit(module, batches)

    bare = net()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.01, weight_decay=1e-4)
    step = 0
    for epoch in range(3):
        batches.sampler.set_epoch(epoch)
        for batch in batches:
            optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, (step + 1) / 7)
            optimizer.zero_grad()
            nn.functional.huber_loss(bare(batch.x), batch.target, delta=0.1).backward()
            nn.utils.clip_grad_norm_(bare.parameters(), 0.05)
            optimizer.step()
            step += 1
    for ours, theirs in zip(module.net.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_val_metrics_are_logged() -> None:
    x, target = data()
    val = ScoreBatches(ScoredBatch(x[:50], target[:50], target[:50] - 0.5), batch_size=16)
    run = trainer(max_epochs=1)
    run.fit(forecaster(net()), batches_of(x, target), val)
    logged = run.callback_metrics
    assert logged["val/skill"] == pytest.approx(1 - logged["val/loss"] / logged["val/loss_trivial"])
    assert "val/rank_ic" in logged


class Points(Logger):
    """Stores the logged points."""

    name, version = "points", 0

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[int, dict[str, float]] = {}

    def log_hyperparams(self, *_: object) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        assert step not in self.drawn
        self.drawn[step] = metrics


def points(*, every: int, accumulate: int) -> dict[int, dict[str, float]]:
    drawn = Points()
    settings = {"log_every_n_steps": every, "accumulate_grad_batches": accumulate}
    trainer(logger=drawn, **settings).fit(forecaster(net()), batches_of(*data()))
    return drawn.drawn


@pytest.mark.parametrize("accumulate", [1, 2])
def test_points_are_logged_every_n_steps(accumulate: int) -> None:
    every_step, some = (
        points(every=1, accumulate=accumulate),
        points(every=7, accumulate=accumulate),
    )
    steps = 3 * ROWS // BATCH // accumulate
    assert sorted(every_step) == list(range(steps))
    assert sorted(some) == list(range(6, steps, 7))
    assert some == {step: every_step[step] for step in some}
    assert set(some[6]) == {"train/objective", "train/gradient_norm", "lr"}
    # warmed up over 7 steps
    assert [every_step[step]["lr"] for step in (0, 3, 6, 7)] == [
        pytest.approx(0.01 * share) for share in (1 / 7, 4 / 7, 1, 1)
    ]
    assert points(every=0, accumulate=accumulate) == {}


def test_logged_points_are_loss_and_gradient_norm_of_the_batch() -> None:
    first = points(every=1, accumulate=1)[0]
    batch, module = next(iter(batches_of(*data()))), net()
    loss = nn.functional.huber_loss(module(batch.x), batch.target, delta=0.1)
    norm = nn.utils.get_total_norm(torch.autograd.grad(loss, list(module.parameters())))
    assert first["train/objective"] == pytest.approx(float(loss.detach()))
    assert first["train/gradient_norm"] == pytest.approx(float(norm))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["x", "target"])
def test_bad_row_stops_the_run_before_the_weights_change(bad: float, place: str) -> None:
    x, target = data()
    (x if place == "x" else target)[77] = bad
    module = forecaster(net())
    with pytest.raises(NonFiniteError, match=r"loss is (nan|inf) .* at step \d+"):
        trainer().fit(module, batches_of(x, target))
    check_finite_weights(module.net, when="after the stop")


def test_overflowing_weight_stops_the_run() -> None:
    class Poison(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, module: L.LightningModule, *_: object
        ) -> None:
            if trainer.global_step == 20 * 3:
                with torch.no_grad():
                    module.net.head.bias.fill_(torch.inf)

    with pytest.raises(NonFiniteError, match=r"weights are not finite .*head.bias"):
        trainer(callbacks=[Poison(), StopOnNonFiniteWeights()]).fit(
            forecaster(net()), batches_of(*data())
        )


def test_huge_learning_rate_never_finishes_with_nan() -> None:
    module = forecaster(net(), lr=1e30, warmup=0)
    with pytest.raises(NonFiniteError):
        trainer(max_epochs=20).fit(module, batches_of(*data()))


def span(rows: int = 501) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    outcome = (
        torch.round(4 * torch.randn(rows, generator=generator)) / 4
    )  # ties, as ticks make them
    target = torch.rand(rows, generator=generator)
    score = 0.5 + 0.1 * torch.randn(rows, generator=generator) + 0.02 * outcome
    return score, target, outcome


def test_span_scores_convert_forecasts_to_ranks() -> None:
    score, target, outcome = span()
    ranked = SpanScores(train_median=0.49, train_mean=0.5)
    ranked.update(score, target, outcome)
    raw = SpanScores(train_median=0.49, train_mean=0.5, to_rank=lambda score: score / 8 + 0.5)
    raw.update(8 * (score - 0.5), target, outcome)
    pairs = zip(ranked.compute().values(), raw.compute().values(), strict=True)
    assert all(a.item() == pytest.approx(b.item(), rel=1e-6) for a, b in pairs)


def test_span_scores_of_batches_are_those_of_the_span() -> None:
    score, target, outcome = span()
    scores = SpanScores(train_median=0.49, train_mean=0.5)
    for part in torch.split(torch.arange(501), 64):
        scores.update(score[part], target[part], outcome[part])
    metrics = {name: value.item() for name, value in scores.compute().items()}
    s, t, y = (v.double().numpy() for v in (score, target, outcome))
    size = np.abs(s - t)
    loss = np.where(size <= 0.1, size**2 / 2, 0.1 * (size - 0.05)).mean()
    size = np.abs(0.49 - t)
    trivial = np.where(size <= 0.1, size**2 / 2, 0.1 * (size - 0.05)).mean()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["loss_trivial"] == pytest.approx(trivial, rel=1e-6)
    assert metrics["skill"] == pytest.approx(1 - loss / trivial, rel=1e-5)
    expected = 1 - ((s - t) ** 2).mean() / ((0.5 - t) ** 2).mean()
    assert metrics["skill_squared"] == pytest.approx(expected, rel=1e-5)
    assert metrics["mae"] == pytest.approx(np.abs(s - t).mean(), rel=1e-6)
    assert metrics["rank_ic"] == pytest.approx(spearmanr(s, y).statistic, rel=1e-5)


def test_span_scores_reset() -> None:
    score, target, outcome = span()
    scores = SpanScores(train_median=0.5, train_mean=0.5)
    scores.update(score, target, outcome)
    scores.reset()
    scores.update(score[:50], target[:50], outcome[:50])
    expected = spearmanr(score[:50], outcome[:50]).statistic
    assert scores.compute()["rank_ic"].item() == pytest.approx(expected, rel=1e-5)


def test_rank_ic_of_a_constant_forecast_is_nan() -> None:
    _, target, outcome = span()
    scores = SpanScores(train_median=0.5, train_mean=0.5)
    scores.update(torch.full((501,), 0.5), target, outcome)
    assert torch.isnan(scores.compute()["rank_ic"])
    assert scores.compute()["skill"].item() == 0
