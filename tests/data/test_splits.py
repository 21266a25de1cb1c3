import numpy as np
import pytest

from robust_fin.data.splits import Fold, FoldGroup, Holdout, Timeline, backtest_paths
from robust_fin.errors import ConfigError, SplitError
from tests.bars import config, instantiate
from tests.labelled_rows import cut as every_fold
from tests.labelled_rows import grid, random_table

NEXT_BAR, THIRD_BAR = 2, 4  # label ends for horizon 1 and 3, in bars after the start


def minutes(*values: int) -> np.ndarray:
    return np.array(values).astype("datetime64[m]").astype("datetime64[ns]")


def cut(
    split: Holdout, *, rows: int = 20, ends: int = NEXT_BAR, time: list[int] | None = None
) -> Fold:
    start = np.array(time if time is not None else range(rows))
    (fold,) = every_fold(
        split, grid(start.size)._replace(time=minutes(*start), label_end=minutes(*(start + ends)))
    )
    return fold


def spans(fold: Fold) -> list[list[int]]:
    return [fold.train.tolist(), fold.val.tolist(), fold.test.tolist()]


def test_row_whose_label_reaches_into_the_next_span_is_purged() -> None:
    fold = cut(Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False))
    assert spans(fold) == [list(range(13)), [14], [16, 17, 18, 19]]
    assert fold.purged == {"purged: label reaches into the next span": 2}


def test_label_that_ends_when_the_next_span_starts_is_kept() -> None:
    fold = cut(Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False), ends=1)
    assert spans(fold) == [list(range(14)), [14, 15], [16, 17, 18, 19]]
    assert fold.purged == {}


def test_longer_horizon_purges_more_rows() -> None:
    fold = cut(
        Holdout(val_fraction=0.25, test_fraction=0.25, embargo=0, refit=False), ends=THIRD_BAR
    )
    assert spans(fold) == [[0, 1, 2, 3, 4, 5, 6], [10, 11], [15, 16, 17, 18, 19]]
    assert fold.purged == {"purged: label reaches into the next span": 6}


def test_embargo_is_added_to_the_purge_before_each_border() -> None:
    fold = cut(Holdout(val_fraction=0.25, test_fraction=0.25, embargo=2, refit=False))
    assert spans(fold) == [[0, 1, 2, 3, 4, 5, 6], [10, 11], [15, 16, 17, 18, 19]]
    assert fold.purged == {
        "purged: label reaches into the next span": 2,
        "embargo before the next span": 4,
    }


def test_purging_uses_label_end_not_a_number_of_rows() -> None:
    time, ends = minutes(*range(10)), minutes(9, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    split = Holdout(val_fraction=0.0, test_fraction=0.5, embargo=0, refit=False)
    (fold,) = every_fold(split, grid(10)._replace(time=time, label_end=ends))
    assert spans(fold) == [[1, 2, 3, 4], [], [5, 6, 7, 8, 9]]


def test_without_val_train_extends_to_test() -> None:
    fold = cut(Holdout(val_fraction=0.0, test_fraction=0.2, embargo=0, refit=False))
    assert spans(fold) == [list(range(15)), [], [16, 17, 18, 19]]


def test_without_val_keeps_the_test_span() -> None:
    split = Holdout(val_fraction=0.25, test_fraction=0.25, embargo=1, refit=True)
    first, again = cut(split), cut(split.without_val())
    assert spans(first) == [[0, 1, 2, 3, 4, 5, 6, 7], [10, 11, 12], [15, 16, 17, 18, 19]]
    assert spans(again) == [list(range(13)), [], [15, 16, 17, 18, 19]]


@pytest.mark.parametrize("rows", [10, 101, 1_073_305])
@pytest.mark.parametrize("val", [0.1, 0.15, 0.3])
def test_test_span_is_the_same_with_and_without_val(rows: int, val: float) -> None:
    split = Holdout(val_fraction=val, test_fraction=0.2, embargo=0, refit=True)
    with_val, without = cut(split, rows=rows, ends=1), cut(split.without_val(), rows=rows, ends=1)
    assert np.array_equal(with_val.test, without.test)
    assert with_val.test.size == round(0.2 * rows)
    assert without.train.size == with_val.train.size + with_val.val.size


def test_rows_of_the_same_time_stay_in_the_same_span() -> None:
    # two contracts per time: each border moves to the first row of its pair
    time = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    fold = cut(
        Holdout(val_fraction=0.3, test_fraction=0.3, embargo=0, refit=False), time=time, ends=1
    )
    assert spans(fold) == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9]]


def test_no_row_is_lost_or_used_twice() -> None:
    time = np.sort(np.random.default_rng(0).integers(0, 4000, 5000)).tolist()
    fold = cut(
        Holdout(val_fraction=0.1, test_fraction=0.2, embargo=7, refit=False), time=time, ends=5
    )
    used = np.concatenate([fold.train, fold.val, fold.test])
    assert np.unique(used).size == used.size == 5000 - sum(fold.purged.values())
    start = np.array(time)
    assert start[fold.train].max() + 5 <= start[fold.val].min()
    assert start[fold.val].max() + 5 <= start[fold.test].min()


@pytest.mark.parametrize(
    ("val", "test", "embargo"), [(-0.1, 0.2, 0), (0.1, 0.0, 0), (0.5, 0.5, 0), (0.1, 0.2, -1)]
)
def test_invalid_fractions_raise_with_their_values(val, test, embargo) -> None:
    message = (
        rf"val_fraction={val}, split\.test_fraction={test}, split\.embargo={embargo}; required"
    )
    with pytest.raises(ConfigError, match=message):
        Holdout(val_fraction=val, test_fraction=test, embargo=embargo, refit=False)


def test_refit_without_val_raises() -> None:
    with pytest.raises(ConfigError, match=r"split\.refit=true needs a val span"):
        Holdout(val_fraction=0.0, test_fraction=0.2, embargo=0, refit=True)


@pytest.mark.parametrize(
    ("split", "rows", "span"),
    [
        (Holdout(val_fraction=0.1, test_fraction=0.2, embargo=50, refit=False), 20, "train"),
        (Holdout(val_fraction=0.1, test_fraction=0.2, embargo=1, refit=False), 20, "val"),
        (Holdout(val_fraction=0.4, test_fraction=0.01, embargo=0, refit=False), 20, "test"),
    ],
)
def test_error_names_the_span_without_rows(split: Holdout, rows: int, span: str) -> None:
    with pytest.raises(SplitError, match=rf"leave no {span} row of {rows} labelled rows"):
        cut(split, rows=rows)


def test_holdout_has_a_single_fold() -> None:
    split, table = Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False), grid(20)
    (fold,) = every_fold(split, table)
    assert spans(fold) == spans(cut(split)) == [list(range(13)), [14], [16, 17, 18, 19]]
    assert fold.test_group().tolist() == fold.test_path().tolist() == [0, 0, 0, 0]


def test_lockbox_follows_test_and_no_label_reaches_into_it() -> None:
    fold = cut(Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False, lockbox=0.15))
    assert spans(fold) == [list(range(10)), [11], [13, 14, 15]]
    assert fold.purged == {
        "purged: label reaches into the next span": 2,
        "purged: label reaches into the lockbox": 1,
        "lockbox: never looked at": 3,
    }
    again = cut(
        Holdout(
            val_fraction=0.1, test_fraction=0.2, embargo=0, refit=True, lockbox=0.15
        ).without_val()
    )
    assert spans(again) == [list(range(12)), [], [13, 14, 15]]


def test_invalid_lockbox_raises() -> None:
    with pytest.raises(ConfigError, match=r"val \+ test \+ lockbox < 1 \(split\.lockbox=0\.7\)"):
        Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False, lockbox=0.7)
    with pytest.raises(ConfigError, match=r"split\.lockbox=-0\.1 must be a share of all rows"):
        Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False, lockbox=-0.1)


def test_every_split_locks_the_same_number_of_rows() -> None:
    table = random_table(1, contracts=3)
    locked = [
        sum(fold.purged["lockbox: never looked at"] for fold in every_fold(split, table)[:1])
        for split in (
            Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False, lockbox=0.2),
            instantiate(config("split=walk_forward", "split.lockbox=0.2").split),
            instantiate(config("split=purged_kfold", "split.lockbox=0.2").split),
            instantiate(config("split=cpcv", "split.lockbox=0.2").split),
        )
    ]
    assert len(set(locked)) == 1
    assert locked[0] >= 0.2 * table.time.size


def test_backtest_paths_are_in_time_order() -> None:
    one = Fold(np.array([9]), np.array([]).astype(int), np.array([0, 1, 4]), {}, groups(0, 0, 2, 1))
    two = Fold(np.array([9]), np.array([]).astype(int), np.array([0, 1, 4]), {}, groups(0, 1, 2, 0))
    rows, paths = backtest_paths([one, two], [np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])])
    assert rows.tolist() == [0, 1, 4]
    assert paths.tolist() == [[1.0, 2.0, 6.0], [4.0, 5.0, 3.0]]


def groups(number: int, path: int, other: int, other_path: int) -> tuple[FoldGroup, FoldGroup]:
    """Return two test rows of one group and one row of another."""
    return FoldGroup(number, path, 2), FoldGroup(other, other_path, 1)


def timeline(time: list[int], ends: list[int], *, lockbox: float = 0.0) -> Timeline:
    return Timeline.from_rows(minutes(*time), minutes(*ends), lockbox=lockbox)


def test_border_is_the_first_row_of_its_time() -> None:
    line = timeline([0, 0, 1, 1, 1, 2], [1, 1, 2, 2, 2, 3])
    assert [line.border(row) for row in range(7)] == [0, 0, 2, 2, 2, 5, 6]


def test_ending_by_works_for_any_order_of_label_ends() -> None:
    line = timeline([0, 1, 2, 3, 4, 5], [3, 9, 3, 4, 6, 6])
    assert line.ending_by(np.arange(6), 3).tolist() == [0, 2]
    assert line.ending_by(np.array([0, 1]), 3).tolist() == [0]
    assert line.ending_by(np.array([1, 3, 4]), 4).tolist() == [3]
    assert line.ending_by(np.arange(6), 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_ending_by_matches_a_comparison_of_all_rows() -> None:
    draw = np.random.default_rng(0)
    time = np.sort(draw.integers(0, 200, 300))
    line = timeline(time.tolist(), (time + draw.integers(1, 40, 300)).tolist())
    for limit in range(0, 300, 7):
        rows = np.sort(draw.choice(300, 90, replace=False))
        expected = rows[line.label_end[rows] <= line.time[limit]]
        assert line.ending_by(rows, limit).tolist() == expected.tolist()


@pytest.mark.parametrize(("lockbox", "end"), [(0.0, 6), (0.3, 2), (0.5, 2), (0.6, 2), (0.1, 5)])
def test_lockbox_starts_at_the_first_row_of_a_time(lockbox: float, end: int) -> None:
    line = timeline([0, 0, 1, 1, 1, 2], [1, 1, 2, 2, 2, 3], lockbox=lockbox)
    assert line.end == end
    assert line.locked() == ({"lockbox: never looked at": 6 - end} if end < 6 else {})


def test_bars_ahead_counts_distinct_times() -> None:
    assert timeline([0, 0, 1, 5, 9], [1, 1, 2, 6, 10]).bars_ahead() == 0
    assert timeline([0, 0, 1, 5, 9], [6, 1, 2, 6, 10]).bars_ahead() == 2


def test_shared_row_numbers_are_read_only() -> None:
    rows, _ = timeline([0, 1, 2], [1, 2, 3]).open_rows(0, 3)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 7
