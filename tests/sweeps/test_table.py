from pathlib import Path

import pandas as pd
import pytest

from robust_fin.sweeps.strategy import FAILED, FINISHED, PRUNED, STOPPED, Figure, Row
from robust_fin.sweeps.sweep import chosen_row, in_order, sweep_table, typed_column, write_table

SWEEP = Path("/sweep")


def row(
    number: int,
    skill: float | None = None,
    *,
    state: str = FINISHED,
    member: int | None = None,
    **settings: str,
) -> Row:
    figures: dict[str, Figure] = {
        "test/skill": 0.5, "baseline/ridge/skill": 0.1, "against/ridge/skill": 0.4, "steps": 7,
        "seed": 3, "train/objective": 0.25, "val/rank_ic": 0.1, "val/skill": skill,
        "members/test/skill_mean": 0.3, "members/val/skill_mean": 0.2,
    }  # fmt: skip
    return Row(
        number=number,
        member=member,
        state=state,
        reason=None if state == FINISHED else "because",
        settings=settings,
        overrides=f"job {number}",
        metrics=figures if state == FINISHED else {},
        seconds=1.25,
        folder=SWEEP / str(number),
    )


def test_the_best_on_val_comes_first_and_what_has_none_last() -> None:
    rows = [
        row(0, state=FAILED), row(1, 0.1), row(2, float("nan")), row(3, 0.3), row(4, None),
        row(5, state=STOPPED), row(6, state=PRUNED), row(7, 0.3), row(8, state=FAILED),
    ]  # fmt: skip
    assert [one.number for one in in_order(rows)] == [3, 7, 1, 2, 4, 0, 8, 6, 5]
    assert chosen_row(rows) is rows[3]
    assert chosen_row([rows[0], rows[2]]) is None
    assert chosen_row([]) is None


def test_the_columns_and_which_of_them_only_the_chosen_row_has() -> None:
    rows = [row(0, 0.1, lr="0.1", seed="0"), row(1, 0.2, lr="1e-3", seed="0")]
    found = sweep_table(rows, swept=["seed"], chosen=rows[1], folder=SWEEP)
    assert list(found.columns) == [
        "job", "chosen", "state", "reason", "lr", "seed", "val/skill", "val/rank_ic",
        "members/val/skill_mean", "train/objective", "steps", "test/skill",
        "members/test/skill_mean", "job_seconds", "run", "overrides",
    ]  # fmt: skip
    assert found["job"].tolist() == [1, 0]
    assert found["lr"].tolist() == [0.001, 0.1]
    assert found["seed"].tolist() == [0, 0]
    assert found["test/skill"].isna().tolist() == [False, True]
    assert found["run"].tolist() == ["1", "0"]


def test_nothing_of_test_is_shown_before_one_is_chosen() -> None:
    found = sweep_table([row(0, 0.1), row(1, 0.2)], swept=[], chosen=None, folder=SWEEP)
    assert not [name for name in found if "test/" in name]
    assert found["chosen"].tolist() == [False, False]


def test_members_have_a_column_of_their_own() -> None:
    rows = [row(0, 0.1, member=1), row(0, 0.2, member=0), row(1, state=FAILED)]
    found = sweep_table(rows, swept=[], chosen=rows[1], folder=SWEEP)
    assert found["member"].astype(object).tolist() == [0, 1, pd.NA]
    assert found["chosen"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("values", "dtype", "wanted"),
    [
        (["1", "2"], "Int64", [1, 2]),
        (["1", "null", "3"], "Int64", [1, None, 3]),
        (["1", "2.5", "1e30"], "Float64", [1.0, 2.5, 1e30]),
        (["true", "False"], "boolean", [True, False]),
        (["[16,8]", "[64]"], "string", ["[16,8]", "[64]"]),
        (["1", "x"], "string", ["1", "x"]),
        (["true", "1"], "string", ["true", "1"]),
        ([None, None], "Int64", [None, None]),
    ],
)
def test_a_column_has_the_type_of_its_values(
    values: list[str | None], dtype: str, wanted: list[object]
) -> None:
    found = typed_column(values)
    assert str(found.dtype) == dtype
    assert [None if pd.isna(one) else one for one in found] == wanted


def test_both_files_hold_the_table(tmp_path: Path) -> None:
    rows = [row(0, 0.1, hidden="[16,8]"), row(1, state=FAILED, hidden="[64]")]
    table = sweep_table(rows, swept=["hidden"], chosen=rows[0], folder=SWEEP)
    write_table(table, tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "sweep.parquet"), table)
    written = pd.read_csv(tmp_path / "sweep.csv")
    assert list(written.columns) == list(table.columns)
    assert written["hidden"].tolist() == ["[16,8]", "[64]"]
    assert written["val/skill"].tolist()[0] == 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.csv", "sweep.parquet"]
    write_table(sweep_table([], swept=[], chosen=None, folder=SWEEP), tmp_path)
    assert pd.read_csv(tmp_path / "sweep.csv").empty
