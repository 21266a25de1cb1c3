"""Every precision of the plain engine trains to the end, or is refused before training."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from robust_fin import load_bars, predict, train
from tests.small_runs import run_training

TINY = ("source.synthetic.rows=3000", "features=study", "trainer.max_epochs=1", "batch_size=64")
SOURCE = ("source.synthetic.signal=0.2",)  # of the experiment smoke
DIAGNOSED = ("stability.diagnose_every_n_steps=5", "callbacks.histograms.every_n_steps=5")


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_true_precisions_train_to_the_end_and_score_in_float32(
    precision: str, tmp_path: Path
) -> None:
    words = (*TINY, *DIAGNOSED, f"trainer.precision={precision}")
    metrics = run_training(tmp_path, *words)
    for name in ("loss", "skill", "rank_ic", "mae"):
        assert np.isfinite(metrics[f"test/{name}"]), name
    weights = load_file(tmp_path / "bundle" / "model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {"float32"}
    written = pd.read_parquet(tmp_path / "predictions.parquet").query("model == 'net'")
    bars = load_bars(None, *TINY[:1], *SOURCE)
    again = predict(tmp_path, bars).set_index("time")["score"]
    np.testing.assert_array_equal(again.loc[written["time"]], written["score"])
    assert list((tmp_path / "tensorboard").rglob("events*"))


@pytest.mark.parametrize(
    ("precision", "telling"),
    [
        ("16-mixed", "trainer.precision=16-mixed needs a GPU"),
        ("foo", "trainer.precision=foo must be 32-true, 64-true, bf16-true, 16-true, "),
    ],
)
def test_other_precisions_are_refused_before_training(
    precision: str, telling: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["+experiment=smoke", f"hydra.run.dir={tmp_path}", "cache.folder=null", *TINY]
    assert train.main([*words, f"trainer.precision={precision}"]) == 1
    assert telling in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()
