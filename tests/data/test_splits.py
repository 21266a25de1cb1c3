import numpy as np
import pytest

from robust_fin.data.splits import Fold, FoldGroup, Holdout, backtest_paths
from robust_fin.errors import ConfigError, SplitError
from tests.bars import config, instantiate
from tests.tables import cut as every_fold
from tests.tables import grid, random_table

NEXT_BAR, THIRD_BAR = 2, 4  # ends of the labels of horizon 1 and 3, in bars after the start


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


def test_the_row_whose_label_reaches_into_the_next_span_is_purged() -> None:
    fold = cut(Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False))
    assert spans(fold) == [list(range(13)), [14], [16, 17, 18, 19]]
    assert fold.purged == {"purged: label reaches into the next span": 2}


def test_a_label_that_ends_as_the_next_span_starts_stays() -> None:
    fold = cut(Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False), ends=1)
    assert spans(fold) == [list(range(14)), [14, 15], [16, 17, 18, 19]]
    assert fold.purged == {}


def test_a_longer_horizon_purges_more() -> None:
    fold = cut(
        Holdout(val_fraction=0.25, test_fraction=0.25, embargo=0, refit=False), ends=THIRD_BAR
    )
    assert spans(fold) == [[0, 1, 2, 3, 4, 5, 6], [10, 11], [15, 16, 17, 18, 19]]
    assert fold.purged == {"purged: label reaches into the next span": 6}


def test_an_embargo_is_on_top_of_the_purge_before_each_border() -> None:
    fold = cut(Holdout(val_fraction=0.25, test_fraction=0.25, embargo=2, refit=False))
    assert spans(fold) == [[0, 1, 2, 3, 4, 5, 6], [10, 11], [15, 16, 17, 18, 19]]
    assert fold.purged == {
        "purged: label reaches into the next span": 2,
        "embargo before the next span": 4,
    }


def test_purging_goes_by_the_labels_end_not_by_a_count() -> None:
    time, ends = minutes(*range(10)), minutes(9, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    split = Holdout(val_fraction=0.0, test_fraction=0.5, embargo=0, refit=False)
    (fold,) = every_fold(split, grid(10)._replace(time=time, label_end=ends))
    assert spans(fold) == [[1, 2, 3, 4], [], [5, 6, 7, 8, 9]]


def test_without_a_val_span_train_reaches_to_test() -> None:
    fold = cut(Holdout(val_fraction=0.0, test_fraction=0.2, embargo=0, refit=False))
    assert spans(fold) == [list(range(15)), [], [16, 17, 18, 19]]


def test_giving_val_to_train_leaves_test_as_it_is() -> None:
    split = Holdout(val_fraction=0.25, test_fraction=0.25, embargo=1, refit=True)
    first, again = cut(split), cut(split.without_val())
    assert spans(first) == [[0, 1, 2, 3, 4, 5, 6, 7], [10, 11, 12], [15, 16, 17, 18, 19]]
    assert spans(again) == [list(range(13)), [], [15, 16, 17, 18, 19]]


@pytest.mark.parametrize("rows", [10, 101, 1_073_305])
@pytest.mark.parametrize("val", [0.1, 0.15, 0.3])
def test_the_test_span_is_the_same_with_and_without_val(rows: int, val: float) -> None:
    split = Holdout(val_fraction=val, test_fraction=0.2, embargo=0, refit=True)
    with_val, without = cut(split, rows=rows, ends=1), cut(split.without_val(), rows=rows, ends=1)
    assert np.array_equal(with_val.test, without.test)
    assert with_val.test.size == round(0.2 * rows)
    assert without.train.size == with_val.train.size + with_val.val.size


def test_rows_of_one_stamp_stay_on_one_side() -> None:
    # two contracts a stamp: the borders 7 and 8 of ten rows both fall to a pair's first row
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
def test_impossible_fractions_are_said_with_their_values(val, test, embargo) -> None:
    words = (
        rf"split\.val_fraction={val}, split\.test_fraction={test}, split\.embargo={embargo}: needed"
    )
    with pytest.raises(ConfigError, match=words):
        Holdout(val_fraction=val, test_fraction=test, embargo=embargo, refit=False)


def test_a_refit_needs_something_to_choose_on() -> None:
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
def test_a_span_without_rows_is_named(split: Holdout, rows: int, span: str) -> None:
    with pytest.raises(SplitError, match=rf"leave no {span} row of {rows} labelled rows"):
        cut(split, rows=rows)


def test_the_folds_of_a_holdout_are_its_one_fold() -> None:
    split, table = Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False), grid(20)
    (fold,) = every_fold(split, table)
    assert spans(fold) == spans(cut(split)) == [list(range(13)), [14], [16, 17, 18, 19]]
    assert fold.test_group().tolist() == fold.test_path().tolist() == [0, 0, 0, 0]


def test_the_lockbox_comes_after_test_and_no_label_reaches_into_it() -> None:
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


def test_the_lockbox_takes_its_share_of_the_rows() -> None:
    with pytest.raises(ConfigError, match=r"val \+ test \+ lockbox < 1 \(split\.lockbox=0\.7\)"):
        Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False, lockbox=0.7)
    with pytest.raises(ConfigError, match=r"split\.lockbox=-0\.1 must be a share of all rows"):
        Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False, lockbox=-0.1)


def test_every_split_locks_the_same_rows() -> None:
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


def test_paths_are_put_together_in_the_order_of_time() -> None:
    one = Fold(np.array([9]), np.array([]).astype(int), np.array([0, 1, 4]), {}, groups(0, 0, 2, 1))
    two = Fold(np.array([9]), np.array([]).astype(int), np.array([0, 1, 4]), {}, groups(0, 1, 2, 0))
    rows, paths = backtest_paths([one, two], [np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])])
    assert rows.tolist() == [0, 1, 4]
    assert paths.tolist() == [[1.0, 2.0, 6.0], [4.0, 5.0, 3.0]]


def groups(number: int, path: int, other: int, other_path: int) -> tuple[FoldGroup, FoldGroup]:
    """Two test rows of one group, and one of another."""
    return FoldGroup(number, path, 2), FoldGroup(other, other_path, 1)
