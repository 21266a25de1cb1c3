"""sweep=population has the rows of the grid, from fewer processes."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from robust_fin import train
from tests.small_runs import QUICK

TINY = (*QUICK, "source.synthetic.rows=4000", "features.names=[close_change_pct]", "batch_size=128")
LOSS = ("loss=huber", "loss.delta=0.1", "split.refit=true", "trainer.max_epochs=3")
COMMON = ("optimizer.lr=0.001,0.01", "model.hidden=[8],[4,4]", "seed=3")
SKILLS = ["val/skill", "val/skill_squared", "val/rank_ic", "val/mae"]


def swept(folder: Path, kind: str, *words: str) -> pd.DataFrame:
    given = (f"sweep={kind}", f"hydra.sweep.dir={folder}", "engine=compiled", *TINY, *LOSS)
    assert train.main(["+experiment=smoke", *given, *words, "-m"]) == 0
    return pd.read_csv(folder / "sweep.csv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "values", "tolerance"),
    [
        ("optimizer.weight_decay", "0.0,0.1", 0.0),
        (
            "model.dropout",
            "0.0,0.1",
            1e-6,
        ),  # dropout is an input: kernels round differently
    ],
)
def test_the_rows_equal_those_of_the_grid(
    key: str, values: str, tolerance: float, tmp_path: Path
) -> None:
    keys = ["optimizer.lr", "model.hidden", key]
    together = swept(tmp_path / "together", "population", *COMMON, f"{key}={values}")
    alone = swept(tmp_path / "alone", "grid", *COMMON, f"{key}={values}")
    assert len(together) == len(alone) == 8
    assert together["job"].nunique() == 2  # one process per architecture
    pairs = together.merge(alone, on=keys, suffixes=("", "_alone"), validate="one_to_one")
    assert len(pairs) == 8
    assert (pairs["state"] == "finished").all()
    # scores of nets with equal weights differ in the last digits if they are computed together
    for name in SKILLS:
        assert pairs[name].to_numpy() == pytest.approx(pairs[f"{name}_alone"], abs=1e-6), name
    assert together.loc[0, keys].tolist() == alone.loc[0, keys].tolist()
    assert together.loc[0, "test/skill"] == pytest.approx(alone.loc[0, "test/skill"], abs=1e-6)
    assert together.loc[~together["chosen"], "test/skill"].isna().all()
    assert_equal_weights(tmp_path, pairs, tolerance=tolerance)


def assert_equal_weights(folder: Path, pairs: pd.DataFrame, *, tolerance: float) -> None:
    """Compare every member's weights with those of its single run."""
    for _, row in pairs.iterrows():
        member = load_file(folder / "together" / str(row["run"]) / "bundle" / "model.safetensors")
        single = load_file(
            folder / "alone" / str(row["run_alone"]) / "bundle" / "model.safetensors"
        )
        assert set(member) == set(single)
        for name, weights in single.items():
            torch.testing.assert_close(
                member[name][row["member"]], weights, rtol=0.0, atol=tolerance, msg=name
            )


@pytest.mark.slow
def test_a_population_sweep_is_one_process_with_a_row_per_member(tmp_path: Path) -> None:
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
