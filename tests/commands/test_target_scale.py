"""Training on returns, or on damaged bars; the metrics use ranks in any case."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_fin import predict, train
from robust_fin.bundle.folder import load_bundle
from robust_fin.market.synthetic import SPIKED_BARS, synthetic_market
from robust_fin.metrics import span_metrics
from robust_fin.runs.training import load_first_fold
from tests.small_runs import read_metrics, run_training

RETURNS = ("target_scale=return", "source.synthetic.rows=6000", "features.names=[close_change_pct]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "returns"
    run_training(folder, *RETURNS, "split.refit=false", "transform=robust")
    return folder


def raw_forecasts(run: Path, span: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the raw forecasts of a span, and the sorted training returns."""
    bundle = load_bundle(run)
    data = load_first_fold(bundle.config)
    score = bundle.nets.link(bundle.nets.net(data.x(span)))
    return score.detach().double().numpy(), np.sort(data.outcome("train"))


def ranks_by_hand(forecast: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return the mean of the left and right rank, interpolated between training returns."""
    values = np.unique(train)
    left, right = (np.searchsorted(train, values, side=side) for side in ("left", "right"))
    return np.interp(forecast, values, (left + right - 1) / 2 / (train.size - 1))


def test_net_learns_returns_in_percent(run: Path) -> None:
    bundle = load_bundle(run)
    data = load_first_fold(bundle.config)
    wanted = data.train_tensors()[1].numpy()
    np.testing.assert_allclose(wanted, 100 * data.outcome("train"), rtol=1e-6)
    assert read_metrics(run)["train/objective"] < 0.01  # of ranks it would be near 0.08


def test_scores_are_the_ranks_of_the_forecast_returns(run: Path) -> None:
    forecast, train = raw_forecasts(run, "test")
    assert np.abs(forecast).max() < 0.1
    table = pd.read_parquet(run / "predictions.parquet")
    score = table.loc[table["model"] == "net", "score"].to_numpy(dtype=float)
    expected = ranks_by_hand(0.01 * forecast, train)
    np.testing.assert_allclose(score, expected, atol=2e-6)
    assert np.unique(score).size > 100
    net, metrics = table[table["model"] == "net"], read_metrics(run)
    median = float(table.loc[table["model"] == "constant", "score"].iloc[0])
    found = span_metrics(
        score,
        net["target"].to_numpy(),
        net["outcome"].to_numpy(),
        train_median=median,
        train_mean=0.5,
    )
    assert metrics["test/skill"] == pytest.approx(found["skill"], abs=1e-6)
    assert metrics["test/loss_trivial"] == pytest.approx(found["loss_trivial"], rel=1e-6)


def test_val_metrics_use_ranks_during_and_after_training(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    seen = [point.value for point in events.Scalars("val/skill")]
    assert max(seen) == pytest.approx(read_metrics(run)["val/skill"], abs=1e-6)
    forecast, train = raw_forecasts(run, "val")
    data = load_first_fold(load_bundle(run).config)
    found = span_metrics(
        ranks_by_hand(0.01 * forecast, train),
        data.target("val"),
        data.outcome("val"),
        train_median=data.fitted.target.median,
        train_mean=data.fitted.target.mean,
    )
    assert read_metrics(run)["val/skill"] == pytest.approx(found["skill"], abs=1e-6)


def test_predict_returns_ranks_after_loading(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    assert predict.main([f"run={run}", f"out={out}"]) == 0
    again, kept = pd.read_parquet(out), pd.read_parquet(run / "predictions.parquet")
    both = kept[kept["model"] == "net"].merge(again, on="time", suffixes=("", "_again"))
    assert len(both) == read_metrics(run)["test_rows"]
    assert np.array_equal(both["score"], both["score_again"])


def test_members_are_ranked_before_their_mean(tmp_path: Path) -> None:
    words = (*RETURNS, "population.members=2", "split.refit=false", "transform=robust")
    metrics = run_training(tmp_path, *words, "trainer.log_every_n_steps=1")
    bundle = load_bundle(tmp_path)
    data = load_first_fold(bundle.config)
    scores = np.concatenate(list(bundle.nets.scores(data.x("test"))))
    assert scores.shape == (2, metrics["test_rows"])
    assert ((scores >= 0) & (scores <= 1)).all()
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    net = table[table["model"] == "net"]
    np.testing.assert_allclose(net["score"], scores.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(net["score_std"], scores.std(axis=0, ddof=1), atol=1e-6)
    members = json.loads((tmp_path / "members.json").read_text())["members"]
    assert metrics["members/val/skill_mean"] == pytest.approx(
        np.mean([one["val/skill"] for one in members])
    )
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    norms = [point.value for point in events.Scalars("members/train/gradient_norm_max")]
    assert len(norms) == metrics["steps"]
    largest = [one["gradient_norm_max"] for one in members]
    assert metrics["train/gradient_norm_max"] == max(largest) > min(largest) > 0
    assert max(norms) == pytest.approx(max(largest), rel=1e-6)


def test_sigmoid_link_with_return_scale_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["+experiment=smoke", f"hydra.run.dir={tmp_path}", "target_scale=return"]
    assert train.main([*words, "link=sigmoid"]) == 1
    assert "link=sigmoid keeps forecasts in (0, 1)" in capsys.readouterr().err
    kept = json.loads((tmp_path / "failure.json").read_text())
    assert kept["error"] == "ConfigError"
    assert kept["message"].endswith("write link=identity")
    assert not (tmp_path / "metrics.json").exists()


def test_spiked_bars_are_reported_and_apply_only_to_the_run(tmp_path: Path) -> None:
    path, run = tmp_path / "es.parquet", tmp_path / "run"
    synthetic_market(6_000, seed=0, start="2022-03-02").bars.to_parquet(path, index=False)
    (run / "failure.json").parent.mkdir()
    (run / "failure.json").write_text("{}")
    words = ("stress=spiked", "source.spikes.share=0.01", "features.names=[close_change_pct]")
    none = ("schedule.warmup=0", "trainer.gradient_clip_val=null", "trainer.log_every_n_steps=1")
    words = (f"source.path={path}", *words, *none, "trainer.max_epochs=1", "split.refit=false")
    metrics = run_training(run, *words)
    assert metrics["nonfinite_steps"] == 0
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    first, *_ = [point.value for point in events.Scalars("lr")]
    assert first == pytest.approx(0.003)  # no warmup
    assert not (run / "failure.json").exists()
    count = json.loads((run / "rows.json").read_text())["reports"][SPIKED_BARS]
    assert 30 < count < 90
    about = json.loads((run / "bundle" / "provenance.json").read_text())
    assert about["data"] == "es.parquet, 1 % of bars spiked 10-fold"
    table = pd.read_parquet(run / "predictions.parquet")
    assert table["outcome"].max() > 8  # nine times the price, and back
    out = tmp_path / "scores.parquet"
    assert predict.main([f"run={run}", f"source.path={path}", f"out={out}"]) == 0
    assert pd.read_parquet(out)["outcome"].abs().max() < 0.05
