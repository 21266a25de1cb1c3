"""sweep=population has the rows that the grid has, from fewer processes."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from robust_fin import train
from tests.runs import QUICK

TINY = (*QUICK, "source.synthetic.rows=4000", "features.names=[close_change_pct]", "batch_size=128")
LOSS = ("loss=huber", "loss.delta=0.1", "split.refit=true", "trainer.max_epochs=3")
SWEPT = ("optimizer.lr=0.001,0.01", "model.hidden=[8],[4,4]", "model.dropout=0.0,0.1", "seed=3")
KEYS = ["optimizer.lr", "model.hidden", "model.dropout"]
SKILLS = ["val/skill", "val/skill_squared", "val/rank_ic", "val/mae"]


def swept(folder: Path, kind: str, *words: str) -> pd.DataFrame:
    given = (f"sweep={kind}", f"hydra.sweep.dir={folder}", "engine=compiled", *TINY, *LOSS)
    assert train.main(["+experiment=smoke", *given, *words, "-m"]) == 0
    return pd.read_csv(folder / "sweep.csv")


@pytest.mark.slow
def test_the_rows_are_those_of_the_grid(tmp_path: Path) -> None:
    together = swept(tmp_path / "together", "population", *SWEPT)
    alone = swept(tmp_path / "alone", "grid", *SWEPT)
    assert len(together) == len(alone) == 8
    assert together["job"].nunique() == 2  # a process for each architecture
    pairs = together.merge(alone, on=KEYS, suffixes=("", "_alone"), validate="one_to_one")
    assert len(pairs) == 8
    assert (pairs["state"] == "finished").all()
    # the weights are the same bit for bit; nets that are scored together differ in the last digits
    for name in SKILLS:
        assert pairs[name].to_numpy() == pytest.approx(pairs[f"{name}_alone"], abs=1e-6), name
    assert together.loc[0, KEYS].tolist() == alone.loc[0, KEYS].tolist()
    assert together.loc[0, "test/skill"] == pytest.approx(alone.loc[0, "test/skill"], abs=1e-6)
    assert together.loc[~together["chosen"], "test/skill"].isna().all()
    assert require_equal_weights(tmp_path, pairs) == 8


def require_equal_weights(folder: Path, pairs: pd.DataFrame) -> int:
    """Hold every member's weights against those of its single run; how many there were."""
    for _, row in pairs.iterrows():
        member = load_file(folder / "together" / str(row["run"]) / "bundle" / "model.safetensors")
        single = load_file(
            folder / "alone" / str(row["run_alone"]) / "bundle" / "model.safetensors"
        )
        assert set(member) == set(single)
        for name, weights in single.items():
            assert torch.equal(member[name][row["member"]], weights), name
    return len(pairs)


@pytest.mark.slow
def test_a_population_sweep_is_one_process_and_a_row_a_member(tmp_path: Path) -> None:
    words = ("optimizer.lr=0.001,0.01,1e30", "engine=plain", "trainer.max_epochs=2")
    given = (f"hydra.sweep.dir={tmp_path}", "sweep=population", *TINY)
    assert train.main(["+experiment=smoke", *given, *words]) == 0  # -m is not needed
    found = pd.read_csv(tmp_path / "sweep.csv")
    assert found["job"].tolist() == [0, 0, 0]
    assert sorted(found["optimizer.lr"]) == [0.001, 0.01, 1e30]
    frozen = found[found["optimizer.lr"] == 1e30].iloc[0]
    assert frozen["state"] == "failed"
    assert frozen["reason"].startswith("frozen at step ")
    assert found["val/skill"].tolist()[:2] == sorted(found["val/skill"].dropna(), reverse=True)
    assert found["test/skill"].notna().tolist() == [True, False, False]
    assert not (tmp_path / "1").exists()
