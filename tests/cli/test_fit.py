"""Tests of the Python API: the results of the command line, and an unchanged process state."""

import logging
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from pandas.testing import assert_frame_equal

import robust_fin
from robust_fin import Run, evaluate, fit, load_bars, make_features, predict, train
from robust_fin.bundle.config import read_plain_config
from robust_fin.errors import BundleError, ConfigError, SchemaError
from robust_fin.ledger.trials import config_hash
from robust_fin.runs.schema import plain_values
from tests.small_runs import QUICK, overrides, read_metrics

TINY = ("source.synthetic.rows=9000", "features=study", "trainer.max_epochs=1", *QUICK)
TIMED = {"fit_seconds", "steps_per_second"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit("smoke", *TINY, "seed=5", folder=tmp_path_factory.mktemp("fitted") / "run")


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train.main(["+experiment=smoke", f"hydra.run.dir={folder}", *TINY, "seed=5"]) == 0
    return folder


def without_times(metrics: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in metrics.items() if name not in TIMED}


def test_fit_writes_the_metrics_and_files_of_the_train_command(run: Run, by_command: Path) -> None:
    assert without_times(run.metrics) == without_times(read_metrics(by_command))
    assert run.metrics["seed"] == 5
    assert config_hash(plain_values(run.config)) == config_hash(read_plain_config(by_command))
    assert overrides(run.folder) == [
        "- +experiment=smoke",
        *(f"- {one}" for one in TINY),
        "- seed=5",
    ]
    here = {path.name for path in run.folder.iterdir()}
    assert {path.name for path in by_command.iterdir()} - here == {"train.log"}


def test_bars_passed_as_a_dataframe_are_saved_in_the_run_folder(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bars = load_bars(None, "+experiment=smoke", "source.synthetic.rows=9000")
    capfd.readouterr()
    words = [*TINY, "seed=5"]
    other = fit("smoke", *words, bars=bars, folder=tmp_path / "run", verbose=True)
    assert capfd.readouterr().out.strip().endswith(other.verdict)
    assert without_times(other.metrics) == without_times(run.metrics)
    assert other.config.source.path == str(tmp_path / "run" / "bars.parquet")
    assert len(pd.read_parquet(tmp_path / "run" / "bars.parquet")) == 9000
    with pytest.raises(ConfigError, match=r"source\.path=a\.csv and bars= were both given"):
        fit("smoke", "source.path=a.csv", bars=bars, folder=tmp_path / "both")
    five = bars.iloc[::5]
    with pytest.raises(SchemaError, match=r"between two bars is 300 s.*; set source\.bar=300s"):
        fit("smoke", *TINY, bars=five, folder=tmp_path / "five")


def test_fit_restores_the_process_state(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    np.random.seed(4)
    torch.set_num_threads(2)
    before = (signal.getsignal(signal.SIGINT), logging.getLogger("lightning.pytorch").level)
    filters, variables = list(warnings.filters), dict(os.environ)
    drawn = torch.get_rng_state(), np.random.get_state()[1].tolist()
    try:
        fit("smoke", *TINY, folder=tmp_path / "run")
        assert torch.get_num_threads() == 2
        assert capfd.readouterr() == ("", "")
    finally:
        torch.set_num_threads(1)
    after = (signal.getsignal(signal.SIGINT), logging.getLogger("lightning.pytorch").level)
    assert after == before
    assert list(warnings.filters) == filters
    assert {name: os.environ.get(name) for name in variables | os.environ} == variables
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert np.random.get_state()[1].tolist() == drawn[1]
    assert not GlobalHydra.instance().is_initialized()


def test_predict_scores_dataframes_and_files_like_the_command(run: Run, tmp_path: Path) -> None:
    bars = load_bars(None, "source.synthetic.rows=800", "source.synthetic.seed=9")
    bars.to_parquet(tmp_path / "new.parquet")
    words = [f"run={run.folder}", f"source.path={tmp_path / 'new.parquet'}"]
    assert predict.main([*words, f"out={tmp_path / 'scores.parquet'}"]) == 0
    by_command = pd.read_parquet(tmp_path / "scores.parquet")
    assert len(by_command) == 795
    for scores in (predict(run, tmp_path / "new.parquet"), predict(run.folder, bars)):
        dates = scores["trading_date"].astype("datetime64[ms]")  # as stored in Parquet
        assert_frame_equal(scores.assign(trading_date=dates), by_command)


def test_evaluate_returns_the_judgement_of_the_command(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    judgement = evaluate(run)
    assert judgement.net.skill.estimate == pytest.approx(run.metrics["test/skill"], rel=1e-6)
    assert run.figures.loc["rank_ic", "estimate"] == run.metrics["test/rank_ic"]
    assert run.figures.loc["skill less ridge", "low"] == judgement.against["ridge"].skill.low
    assert evaluate.main([f"run={run.folder}"]) == 0
    assert capfd.readouterr().out.strip().endswith(run.verdict)
    shown = run._repr_html_()
    assert run.verdict in shown
    assert f"<td>{100 * judgement.net.skill.estimate:+.3f} % [" in shown


def test_run_reads_the_files_of_its_folder(run: Run, tmp_path: Path) -> None:
    assert run.predictions["model"].unique().tolist()[0] == "net"
    assert run.rows["rows_in"] == 9000
    assert run.bundle.features.names[0] == "close_change_pct"
    assert run.report.is_file()
    with pytest.raises(BundleError, match="is not a run folder"):
        Run.open(tmp_path)
    with pytest.raises(BundleError, match="is not a run folder"):
        evaluate(tmp_path)


def test_fit_rejects_a_sweep_and_an_unknown_key() -> None:
    with pytest.raises(ConfigError, match="ladder is a sweep of several runs, but fit trains one"):
        fit("ladder")
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate"):
        fit("smoke", "optimizer.learning_rate=1")


def test_make_features_computes_a_feature_set() -> None:
    bars = load_bars(None, "source.synthetic.rows=300")
    table = make_features(bars, "study")
    assert next(iter(table)) == "close_change_pct"
    expected = bars["close"].to_numpy()[1:] / bars["close"].to_numpy()[:-1] - 1
    np.testing.assert_allclose(table["close_change_pct"].to_numpy()[1:], expected, rtol=1e-12)
    with pytest.raises(SchemaError, match="no column trading_date, trading_day"):
        make_features(bars.drop(columns=["trading_date", "trading_day"]), "study")


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_command_module_is_callable(name: str) -> None:
    module = getattr(robust_fin, name)
    assert callable(module)
    assert module.main.__module__ == f"robust_fin.{name}"
