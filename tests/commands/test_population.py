"""A population from the command line: its results, resume and predictions."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from robust_fin import evaluate, predict, train
from robust_fin.bundle.config import read_config
from robust_fin.bundle.folder import load_bundle
from robust_fin.data.datamodule import BarDataModule
from robust_fin.metrics import span_metrics
from tests.background_runs import SMALL, BackgroundRun, run_to_end
from tests.populations import bars_of
from tests.run_comparison import assert_equal_runs
from tests.signals import TARGET
from tests.small_runs import read_metrics, run_training

SPAN = ("loss", "loss_trivial", "skill", "skill_squared", "mae", "mae_trivial", "rank_ic")
BARS = ("source.synthetic.rows=20000", "source.synthetic.signal=0.2")
WORDS = (*BARS, "model.dropout=0.1", "schedule.warmup=20", "split.refit=true", "seed=4")
MEMBERS = ("population.members=3", "predictions.members=2")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "population"
    run_training(folder, *WORDS, *MEMBERS, experiment="population")
    return folder


@pytest.fixture(scope="module")
def data(run: Path) -> BarDataModule:
    """The fold that scored the test span."""
    return bars_of(read_config(run)).for_refit()


@pytest.fixture(scope="module")
def scores(run: Path, data: BarDataModule) -> np.ndarray:
    """Scores of every member on the test rows, from the bundle."""
    return np.concatenate(list(load_bundle(run).nets.scores(data.x("test"))))


@pytest.fixture(scope="module")
def members(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "members.json").read_text())["members"]


@pytest.fixture(scope="module")
def net(run: Path) -> pd.DataFrame:
    """Rows of the population in the predictions table."""
    table = pd.read_parquet(run / "predictions.parquet")
    return table[table["model"] == "net"]


def test_member_equals_the_single_run_with_its_seed(
    run: Path, members: list[dict[str, Any]], scores: np.ndarray, tmp_path: Path
) -> None:
    own = ("batch_size=16", "optimizer.lr=0.002", "trainer.max_epochs=1", "seed=5")
    alone = run_training(tmp_path / "r", *WORDS, *own, experiment="top5")
    kept = load_file(tmp_path / "r/bundle/model.safetensors")
    stack = load_file(run / "bundle/model.safetensors")
    assert stack.keys() == kept.keys()
    assert all(torch.equal(stack[name][1], one) for name, one in kept.items())
    assert members[1]["seed"] == 5
    for span in ("val", "test"):
        for name in SPAN:
            wanted = alone[f"{span}/{name}"]
            assert members[1][f"{span}/{name}"] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    table = pd.read_parquet(tmp_path / "r/predictions.parquet").query("model == 'net'")
    np.testing.assert_allclose(scores[1], table["score"], rtol=0, atol=1e-6)
    assert table["score_std"].isna().all()
    assert read_metrics(run)["steps"] == alone["steps"]


def test_predictions_are_mean_and_spread_of_the_members_in_the_bundle(
    net: pd.DataFrame, scores: np.ndarray
) -> None:
    wanted = scores.astype(np.float64)
    assert wanted.shape == (3, len(net))
    np.testing.assert_allclose(net["score"], wanted.mean(axis=0), rtol=0, atol=1e-7)
    np.testing.assert_allclose(net["score_std"], wanted.std(axis=0, ddof=1), rtol=1e-5, atol=1e-8)
    assert (net["score_std"] > 0).all()


def test_member_scores_are_kept_for_the_configured_number_of_members(
    run: Path, scores: np.ndarray
) -> None:
    kept = load_arrays(run / "member_scores.safetensors")
    assert list(kept) == ["fold_0"]
    assert kept["fold_0"].dtype == np.float16
    assert np.array_equal(kept["fold_0"], scores[:2].astype(np.float16))


def test_member_metrics_can_be_recomputed_from_its_scores(
    data: BarDataModule, members: list[dict[str, Any]], scores: np.ndarray
) -> None:
    target = data.fitted.target
    for entry, score in zip(members, scores, strict=True):
        wanted = span_metrics(
            score.astype(np.float64),
            data.target("test"),
            data.outcome("test"),
            train_median=target.median,
            train_mean=target.mean,
        )
        found = {name: entry[f"test/{name}"] for name in SPAN}
        assert found == pytest.approx(wanted, rel=1e-12)
        assert entry["frozen_at"] is None
    assert [entry["seed"] for entry in members] == [4, 5, 6]


@pytest.mark.parametrize("span", ["val", "test"])
def test_metrics_have_mean_deviation_and_range_over_members(
    run: Path, members: list[dict[str, Any]], span: str
) -> None:
    metrics = read_metrics(run)
    for name in SPAN:
        values = np.array([entry[f"{span}/{name}"] for entry in members])
        wanted = {
            "mean": values.mean(),
            "std": values.std(ddof=1),
            "low": np.percentile(values, 2.5),
            "high": np.percentile(values, 97.5),
        }
        for part, value in wanted.items():
            got = metrics[f"members/{span}/{name}_{part}"]
            assert got == pytest.approx(value, rel=1e-9, abs=1e-15), (name, part)


def test_span_metrics_are_those_of_the_mean_forecast(
    run: Path, data: BarDataModule, net: pd.DataFrame
) -> None:
    metrics, target = read_metrics(run), data.fitted.target
    wanted = span_metrics(
        net["score"].to_numpy(dtype=np.float64),
        net["target"].to_numpy(),
        net["outcome"].to_numpy(),
        train_median=target.median,
        train_mean=target.mean,
    )
    for name in SPAN:
        assert metrics[f"test/{name}"] == pytest.approx(wanted[name], rel=1e-12)
    assert metrics["test/loss"] < metrics["members/test/loss_mean"]  # a mean loses less


def test_metrics_count_members_and_their_steps(run: Path) -> None:
    metrics = read_metrics(run)
    assert metrics["members"] == 3
    assert metrics["members_frozen"] == metrics["nonfinite_steps"] == 0
    assert metrics["member_steps"] == 3 * metrics["steps"]
    ratio = metrics["member_steps_per_second"] / metrics["steps_per_second"]
    assert ratio == pytest.approx(3)
    assert metrics["parameters"] == 289


def test_predict_reproduces_mean_and_spread_of_the_run(
    run: Path, net: pd.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    assert predict.main([f"run={run}", f"out={out}"]) == 0
    keys = ["time", "contract"]
    scored, tested = pd.read_parquet(out).set_index(keys), net.set_index(keys)
    both = scored.loc[tested.index]
    for name in ("score", "score_std"):
        np.testing.assert_allclose(both[name], tested[name], rtol=0, atol=1e-6)
    assert predict.main([f"run={run}", f"out={out}", "source.synthetic.seed=9"]) == 0
    other = pd.read_parquet(out)
    assert np.isfinite(other[["score", "score_std"]]).all(axis=None)
    assert np.isnan(other["outcome"].iloc[-1])


def test_evaluate_judges_the_mean_forecast(run: Path, capsys: Capture) -> None:
    assert evaluate.main([f"run={run}"]) == 0
    metrics = read_metrics(run)
    skill = f"{100 * metrics['test/skill']:.3f} %"
    assert skill in capsys.readouterr().out


def test_frozen_member_is_reported_and_excluded_from_the_results(
    run: Path, tmp_path: Path, members: list[dict[str, Any]]
) -> None:
    """A member frozen in the first stage is left out of the refit."""
    rates = "population.lr=[0.002,1e30,0.002]"
    metrics = run_training(tmp_path, *WORDS, *MEMBERS, rates, experiment="population")
    assert metrics["members"] == 3
    assert metrics["members_frozen"] == metrics["nonfinite_steps"] == 1
    entries = json.loads((tmp_path / "members.json").read_text())["members"]
    assert entries[1]["frozen_at"] >= 1
    assert "test/skill" not in entries[1]
    assert "val/skill" not in entries[1]
    whole, rest = (load_file(f / "bundle/model.safetensors") for f in (run, tmp_path))
    assert all(torch.equal(one[[0, 2]], rest[name]) for name, one in whole.items())
    for k in (0, 2):
        assert entries[k]["frozen_at"] is None
        assert entries[k]["test/skill"] == members[k]["test/skill"]
    kept = load_arrays(tmp_path / "member_scores.safetensors")["fold_0"]
    assert len(kept) == 2
    losses = pd.read_parquet(tmp_path / "val_losses.parquet")
    assert losses["member"].dropna().unique().tolist() == [0, 2]
    log = (tmp_path / "train.log").read_text()
    assert f"member 1 (seed 5) is frozen at its step {entries[1]['frozen_at']}: loss" in log


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (
            ("population.members=2", "population.lr=[0.1,0.2,0.3]"),
            "population.lr has 3 values, and population.members=2; give one per member",
        ),
        (
            ("population.members=2", "trainer.precision=bf16-mixed"),
            "trainer.precision=bf16-mixed is not for a population, which supports 32-true",
        ),
        (
            ("population.members=2", "population.lr=[1e30,1e30]"),
            "all 2 members are frozen by step 0: a loss or gradient of each is not finite",
        ),
    ],
    ids=["length", "precision", "poison"],
)
def test_population_error_is_one_message_and_leaves_no_result(
    tmp_path: Path, capfd: Capture, words: tuple[str, ...], telling: str
) -> None:
    given = [f"hydra.run.dir={tmp_path}", "source.synthetic.rows=4000", "features=study", *words]
    assert train.main(["+experiment=smoke", *given, "trainer.enable_progress_bar=false"]) == 1
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "predictions.parquet").exists()
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    (message,) = re.findall("^error: (.*)", errors, re.MULTILINE)
    assert message.startswith(telling)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "stage", "step"),
    [(signal.SIGINT, "", 53), (signal.SIGINT, "", 43), (signal.SIGTERM, "refit", 20)],
)
def test_interrupted_population_resumes_to_the_same_result(
    tmp_path: Path, number: signal.Signals, stage: str, step: int
) -> None:
    words = (
        *SMALL, "engine=compiled", "population.members=3", "population.steps_per_call=10",
        "population.workers=2", "cache.folder=null",
    )  # fmt: skip
    log = tmp_path / "log"
    run_to_end([*words, f"hydra.run.dir={tmp_path / 'whole'}"], log=log)
    folder = tmp_path / "cut"
    asked = {"_target_": TARGET, "hook": "on_train_batch_end", "step": step, "times": 1}
    asked["refit"] = stage == "refit"
    given = [f"+callbacks.signals.{key}={value}" for key, value in asked.items()]
    given += [f"+callbacks.signals.number={int(number)}", f"hydra.run.dir={folder}"]
    process = BackgroundRun([*words, *given], log=log)
    assert process.exit_code() == 130, process.output()
    assert f"stopped after step {step}; python -m robust_fin.train resume=" in process.output()
    assert not (folder / "metrics.json").exists()
    assert (folder / "checkpoints" / stage / "last.ckpt").is_file()
    run_to_end([f"resume={folder}", "modules=[tests]"], log=log)
    assert_equal_runs(tmp_path / "whole", folder)
    one, other = (tmp_path / name / "members.json" for name in ("whole", "cut"))
    assert one.read_text() == other.read_text()


@pytest.mark.slow
def test_finished_population_resumes_with_more_epochs(tmp_path: Path) -> None:
    words = ("engine=compiled", "population.members=2", "schedule=warmup_constant")
    run_training(tmp_path / "whole", *words, "trainer.max_epochs=2")
    run_training(tmp_path / "part", *words, "trainer.max_epochs=1")
    assert train.main([f"resume={tmp_path / 'part'}", "trainer.max_epochs=2"]) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "part")
