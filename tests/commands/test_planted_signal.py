"""Training finds a planted signal, and finds none in noise."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robust_fin.market.synthetic import synthetic_market
from robust_fin.metrics import rank_ic
from tests.small_runs import run_training


def learnt_and_oracle(folder: Path, rows: int, signal: float, seed: int) -> tuple[float, float]:
    """Return the rank IC of the net and of the oracle on the same test rows."""
    words = (f"source.synthetic.rows={rows}", f"source.synthetic.signal={signal}")
    metrics = run_training(folder, *words, f"source.synthetic.seed={seed}", experiment="top5")
    market = synthetic_market(rows, seed=seed, signal=signal)
    oracle = market.bars[["time", "contract"]].assign(oracle=market.oracle)
    tested = pd.read_parquet(folder / "predictions.parquet").query("model == 'net'")
    both = tested.astype({"contract": str}).merge(
        oracle.astype({"contract": str}), on=["time", "contract"], validate="one_to_one"
    )
    assert len(both) == metrics["test_rows"]
    known = rank_ic(both["oracle"].to_numpy(), both["outcome"].to_numpy()) if signal else np.nan
    return metrics["test/rank_ic"], known


def test_strong_signal_is_learnt_from_few_rows(tmp_path: Path) -> None:
    learnt, oracle = learnt_and_oracle(tmp_path / "r", 60_000, 0.2, seed=0)
    assert oracle == pytest.approx(0.2, abs=0.03)
    assert learnt == pytest.approx(oracle, abs=0.03)


def test_nothing_is_learnt_from_noise_in_few_rows(tmp_path: Path) -> None:
    learnt, _ = learnt_and_oracle(tmp_path / "r", 60_000, 0.0, seed=0)
    assert learnt == pytest.approx(0, abs=0.03)  # the standard error over 12,000 rows is 0.009


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_rank_ic_of_five_hundredths_is_learnt(tmp_path: Path, seed: int) -> None:
    learnt, oracle = learnt_and_oracle(tmp_path / "r", 500_000, 0.05, seed)
    assert learnt == pytest.approx(oracle, abs=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_learnt_from_noise(tmp_path: Path, seed: int) -> None:
    learnt, _ = learnt_and_oracle(tmp_path / "r", 500_000, 0.0, seed)
    assert learnt == pytest.approx(0, abs=0.010)
