import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_fin import evaluate, predict, train
from robust_fin.bundle.folder import load_bundle
from robust_fin.bundle.predictions import SCORE_BLOCK, score_rows
from robust_fin.metrics import span_metrics
from tests.small_runs import files_below, read_metrics, run_training

SPAN = ("loss", "loss_trivial", "skill", "skill_squared", "mae", "mae_trivial", "rank_ic")


@pytest.fixture(scope="module")
def run(smoke_run: Path) -> Path:
    return smoke_run


def test_run_folder_has_the_documented_files(run: Path) -> None:
    files = files_below(run)
    assert {
        ".hydra/config.yaml",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "bundle/config.yaml",
        "bundle/model.safetensors",
        "bundle/transforms.safetensors",
        "bundle/transforms.json",
        "bundle/provenance.json",
        "predictions.parquet",
        "val_losses.parquet",
        "rows.json",
        "metrics.json",
    } <= files
    assert any(name.startswith("tensorboard/events") for name in files)


def test_metrics_have_every_documented_key(run: Path) -> None:
    metrics = read_metrics(run)
    keys = {
        "parameters", "rows", "train_rows", "val_rows", "test_rows", "steps", "steps_per_second",
        "fit_seconds", "nonfinite_steps", "seed", "train/objective",
    }  # fmt: skip
    keys |= {f"{span}/{name}" for span in ("val", "test") for name in SPAN}
    keys |= {f"baseline/{b}/{m}" for b in ("constant", "minus_last_return") for m in SPAN}
    assert keys <= set(metrics)
    assert metrics["nonfinite_steps"] == 0
    assert metrics["baseline/constant/rank_ic"] is None
    assert metrics["baseline/constant/skill"] == pytest.approx(0, abs=1e-7)


def test_row_ledger_accounts_for_every_row(run: Path) -> None:
    rows, metrics = json.loads((run / "rows.json").read_text()), read_metrics(run)
    assert rows["rows_in"] == metrics["rows"] == 20_000
    assert sum(rows["dropped"].values()) + sum(rows["spans"].values()) == 20_000
    assert rows["spans"] == {name: metrics[f"{name}_rows"] for name in ("train", "val", "test")}
    assert rows["dropped"]["purged: label reaches into the next span"] == 2


def test_metrics_can_be_recomputed_from_the_predictions_table(run: Path) -> None:
    metrics, table = read_metrics(run), pd.read_parquet(run / "predictions.parquet")
    net = table[table["model"] == "net"]
    assert len(net) == metrics["test_rows"]
    assert set(table["model"]) == {"net", "constant", "minus_last_return", "ridge"}
    median = float(table.loc[table["model"] == "constant", "score"].iloc[0])
    found = span_metrics(
        net["score"].to_numpy(dtype=float),
        net["target"].to_numpy(),
        net["outcome"].to_numpy(),
        train_median=median,
        train_mean=0.5,
    )
    for name in ("loss", "mae", "rank_ic"):
        assert metrics[f"test/{name}"] == pytest.approx(found[name], rel=1e-6)
    assert not net.duplicated(["time", "contract", "fold", "model"]).any()
    assert (net["label_end"] > net["time"]).all()


def test_skill_is_one_minus_loss_over_trivial(run: Path) -> None:
    metrics = read_metrics(run)
    for span in ("val", "test"):
        ratio = metrics[f"{span}/loss"] / metrics[f"{span}/loss_trivial"]
        assert metrics[f"{span}/skill"] == pytest.approx(1 - ratio)
    assert metrics["test/skill"] > 0  # the planted signal of this experiment is strong
    assert metrics["test/skill_low"] < metrics["test/skill"] < metrics["test/skill_high"]


def test_tensorboard_has_the_training_curves(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/objective", "train/gradient_norm", "lr"} <= tags
    assert {f"val/{name}" for name in SPAN} <= tags
    rates = {e.step: e.value for e in events.Scalars("lr")}
    assert rates[9] == pytest.approx(0.003 * 10 / 20)  # the warmup of 20 steps, at its tenth


def test_same_seed_gives_the_same_run(run: Path, tmp_path: Path) -> None:
    again = run_training(tmp_path / "again")
    other = run_training(tmp_path / "other", "seed=1")
    first = read_metrics(run)
    assert again["test/loss"] == first["test/loss"]
    assert other["test/loss"] != first["test/loss"]
    ours, theirs = (load_file(f / "bundle/model.safetensors") for f in (run, tmp_path / "again"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_predict_reproduces_the_test_scores_of_the_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    assert predict.main([f"run={run}", f"out={out}"]) == 0
    scored = pd.read_parquet(out).set_index(["time", "contract"])
    tested = pd.read_parquet(run / "predictions.parquet").query("model == 'net'")
    tested = tested.set_index(["time", "contract"])
    both = scored.loc[tested.index]
    assert len(both) == len(tested)
    pd.testing.assert_series_equal(both["outcome"], tested["outcome"])
    np.testing.assert_allclose(both["score"], tested["score"], rtol=0, atol=1e-6)


def test_predict_scores_the_newest_bars_without_an_outcome(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    assert predict.main([f"run={run}", f"out={out}", "source.synthetic.rows=9000"]) == 0
    scored = pd.read_parquet(out)
    newest = scored.iloc[-1]
    assert np.isnan(newest["outcome"])
    assert np.isnan(newest["target"])
    assert np.isfinite(newest["score"])


def test_evaluate_prints_the_metrics_and_the_verdict(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([f"run={run}"]) == 0
    text = capsys.readouterr().out
    assert "rank_ic" in text
    assert "net vs minus the last return" in text
    words = "No skill can be claimed: the test span has 3 trading dates, and 5 are needed."
    assert text.strip().splitlines()[-1].startswith(words)
    run_training(tmp_path / "noise", "source.synthetic.signal=0.0")
    capsys.readouterr()
    assert evaluate.main([f"run=[{run},{tmp_path / 'noise'}]"]) == 0
    compared = capsys.readouterr().out
    assert f"smoke: {words}" in compared
    assert "noise: No skill" in compared


def test_score_of_a_row_does_not_depend_on_other_rows_in_the_file(run: Path) -> None:
    bundle = load_bundle(run)
    x = torch.randn(2 * SCORE_BLOCK + 5, 5, generator=torch.Generator().manual_seed(0))
    whole = score_rows(bundle.nets.net, bundle.nets.link, x)
    # the last bit of about every seventh row differs where a row alone is scored as a batch of one
    for first, count in [*((row, 1) for row in range(60)), (0, 777), (5000, 777)]:
        alone = score_rows(bundle.nets.net, bundle.nets.link, x[first : first + count])
        assert np.array_equal(alone, whole[first : first + count])
    shocked = x.clone()
    shocked[777:] *= 100
    assert np.array_equal(score_rows(bundle.nets.net, bundle.nets.link, shocked)[:777], whole[:777])


def test_without_a_val_span_the_last_weights_are_used_and_val_metrics_are_null(
    tmp_path: Path,
) -> None:
    metrics = run_training(tmp_path / "r", "split.val_fraction=0", "split.refit=false")
    assert metrics["val_rows"] == 0
    assert all(metrics[f"val/{name}"] is None for name in SPAN)
    assert metrics["test/rank_ic"] > 0
    last = torch.load(tmp_path / "r/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    kept = load_file(tmp_path / "r/bundle/model.safetensors")
    assert all(torch.equal(last[f"net.{name}"], kept[name]) for name in kept)


def test_without_refit_the_best_weights_on_val_are_used(tmp_path: Path) -> None:
    run_training(tmp_path / "r", "split.refit=false")
    best = torch.load(tmp_path / "r/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    kept = load_file(tmp_path / "r/bundle/model.safetensors")
    assert all(torch.equal(best[f"net.{name}"], kept[name]) for name in kept)


def test_refit_trains_on_train_and_val(tmp_path: Path) -> None:
    metrics = run_training(tmp_path / "r", "split.refit=true")
    assert metrics["fit_rows"] == metrics["train_rows"] + metrics["val_rows"] + 1  # less one purge
    assert (tmp_path / "r/checkpoints/refit/last.ckpt").is_file()


def test_sweep_runs_its_jobs_in_numbered_folders(tmp_path: Path) -> None:
    words = ["+experiment=smoke", f"hydra.sweep.dir={tmp_path}", "-m", "seed=0,1"]
    forked = "executor._target_=tests.sweeps.forked.ForkedExecutor"
    assert train.main([*words, forked, "trainer.enable_progress_bar=false"]) == 0
    assert [read_metrics(tmp_path / str(number))["seed"] for number in (0, 1)] == [0, 1]


def test_finished_run_resumes_with_more_epochs(tmp_path: Path) -> None:
    words = ("split.refit=false", "schedule=warmup_constant")
    whole = run_training(tmp_path / "whole", *words, "trainer.max_epochs=4")
    part = run_training(tmp_path / "part", *words)
    assert part["steps"] == whole["steps"] // 2
    hydra_files = (tmp_path / "part/.hydra/config.yaml").read_text()
    assert train.main([f"resume={tmp_path / 'part'}", "trainer.max_epochs=4"]) == 0
    assert (tmp_path / "part/.hydra/config.yaml").read_text() == hydra_files
    resumed = read_metrics(tmp_path / "part")
    assert resumed["steps"] == whole["steps"]
    assert resumed["test/loss"] == whole["test/loss"]


def test_resume_with_more_epochs_starts_the_refit_anew(tmp_path: Path) -> None:
    words = ("split.refit=true", "schedule=warmup_constant")
    whole = run_training(tmp_path / "whole", *words, "trainer.max_epochs=2")
    run_training(tmp_path / "part", *words, "trainer.max_epochs=1")
    assert train.main([f"resume={tmp_path / 'part'}", "trainer.max_epochs=2"]) == 0
    assert read_metrics(tmp_path / "part")["test/loss"] == whole["test/loss"]
    assert train.main([f"resume={tmp_path / 'part'}", "trainer.max_epochs=2"]) == 0
    assert read_metrics(tmp_path / "part")["test/loss"] == whole["test/loss"]


def test_every_metric_is_a_number_or_null(run: Path) -> None:
    metrics = read_metrics(run)
    for name, value in metrics.items():
        assert value is None or math.isfinite(value), name
    # a constant has no order, and LightGBM was not trained
    unknown = {"baseline/constant/rank_ic", *(f"baseline/lightgbm/{name}" for name in SPAN)}
    assert {name: metrics[name] for name in unknown} == dict.fromkeys(unknown)


def test_bundle_config_is_resolved_and_loads_without_hydra(run: Path) -> None:
    config = OmegaConf.load(run / "bundle/config.yaml")
    assert config.name == "smoke"
    assert "${" not in (run / "bundle/config.yaml").read_text()


@pytest.mark.parametrize("experiment", ["study", "top5", "smoke"])
def test_every_experiment_passes_a_fast_dev_run(experiment: str, tmp_path: Path) -> None:
    metrics = run_training(
        tmp_path / "r", "trainer.fast_dev_run=true", "source.synthetic.rows=20000",
        experiment=experiment,
    )  # fmt: skip
    assert metrics["steps"] >= 1
