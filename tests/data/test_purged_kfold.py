from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pandas as pd
import purgedcv
import pytest

from robust_fin.data.splits import Fold, FoldGroup, LabelledRows, backtest_paths
from robust_fin.data.time_series_folds import Cpcv, PurgedKFold
from robust_fin.errors import ConfigError, SplitError
from tests.labelled_rows import cut, grid, lists, minutes, random_table

COMMON: dict[str, Any] = {"val_fraction": 0.0, "embargo": 0, "lockbox": 0.0, "refit": False}


def kfold(k: int, **settings: Any) -> PurgedKFold:
    return PurgedKFold(k=k, **COMMON | settings)


def purged_kfold(label_row: np.ndarray, *, folds: int, embargo: int) -> list[Fold]:
    """Cut folds of one bar per row; the label of row r ends with the bar of row label_row[r]."""
    rows = np.arange(label_row.size)
    contract = pd.Categorical(["A"] * rows.size)
    return cut(kfold(folds, embargo=embargo), LabelledRows(rows, label_row + 1, rows, contract))


def cpcv(groups: int, test_groups: int, **settings: Any) -> Cpcv:
    return Cpcv(groups=groups, test_groups=test_groups, **COMMON | settings)


def test_folds_of_nine_rows_with_an_embargo() -> None:
    folds = purged_kfold(np.minimum(np.arange(9) + 1, 8), folds=3, embargo=1)
    assert [f.test.tolist() for f in folds] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [f.train.tolist() for f in folds] == [[5, 6, 7, 8], [0, 1, 8], [0, 1, 2, 3, 4]]
    assert [f.purged for f in folds] == [
        {"purged: label overlaps that of a test row": 1, "embargo after the last test label": 1},
        {"purged: label overlaps that of a test row": 2, "embargo after the last test label": 1},
        {"purged: label overlaps that of a test row": 1},
    ]


def test_times_and_row_numbers_give_the_same_folds() -> None:
    by_stamp = [lists(fold) for fold in cut(kfold(3, embargo=1), grid(9))]
    by_number = [lists(fold) for fold in purged_kfold(np.arange(9) + 1, folds=3, embargo=1)]
    assert by_stamp == by_number


def test_embargo_counts_from_the_last_test_label_not_the_last_test_row() -> None:
    # label 1 reaches to minute 6; the embargo takes the bars of minutes 6 and 7
    ends = [1, 6, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    table = grid(12)._replace(label_end=minutes(*ends))
    first, *_ = cut(kfold(4, embargo=2), table)
    assert lists(first) == [[8, 9, 10, 11], [], [0, 1, 2]]
    assert first.purged == {
        "purged: label overlaps that of a test row": 3,
        "embargo after the last test label": 2,
    }


def test_embargo_counts_bars_not_minutes_or_rows_of_contracts() -> None:
    time = [0, 0, 1, 1, 2, 2, 90, 90, 91, 91, 92, 92]  # two contracts per time, and a night
    table = grid(12)._replace(
        time=minutes(*time), label_end=minutes(*[minute + 1 for minute in time])
    )
    trains = [fold.train.tolist() for fold in cut(kfold(3, embargo=2), table)]
    assert trains == [[8, 9, 10, 11], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_cpcv_tests_every_pair_of_four_groups() -> None:
    folds = cut(cpcv(4, 2, embargo=1), grid(12))  # groups of three, labels end with the next bar
    assert [fold.test.tolist() for fold in folds] == [
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 6, 7, 8],
        [0, 1, 2, 9, 10, 11],
        [3, 4, 5, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
        [6, 7, 8, 9, 10, 11],
    ]
    assert [fold.train.tolist() for fold in folds] == [
        [8, 9, 10, 11],
        [11],
        [5, 6, 7],
        [0, 1, 11],
        [0, 1],
        [0, 1, 2, 3, 4],
    ]


def test_groups_and_paths_of_four_groups() -> None:
    folds = cut(cpcv(4, 2), grid(12))
    assert [fold.groups for fold in folds] == [
        (FoldGroup(0, 0, 3), FoldGroup(1, 0, 3)),
        (FoldGroup(0, 1, 3), FoldGroup(2, 0, 3)),
        (FoldGroup(0, 2, 3), FoldGroup(3, 0, 3)),
        (FoldGroup(1, 1, 3), FoldGroup(2, 1, 3)),
        (FoldGroup(1, 2, 3), FoldGroup(3, 1, 3)),
        (FoldGroup(2, 2, 3), FoldGroup(3, 2, 3)),
    ]
    assert folds[1].test_group().tolist() == [0, 0, 0, 2, 2, 2]
    assert folds[1].test_path().tolist() == [1, 1, 1, 0, 0, 0]
    assert cpcv(4, 2).paths() == ((0, 0, 1, 2), (1, 3, 3, 4), (2, 4, 5, 5))


def test_paths_of_six_groups_match_the_book() -> None:
    # Lopez de Prado (2018), figure 12.2 and section 12.4.1, which count splits from 1
    first, second, *_ = cpcv(6, 2).paths()
    assert [fold + 1 for fold in first] == [1, 1, 2, 3, 4, 5]
    assert [fold + 1 for fold in second] == [2, 6, 6, 7, 8, 9]


@pytest.mark.parametrize(("groups", "test_groups"), [(6, 2), (5, 1), (5, 4), (8, 3), (10, 5)])
def test_each_path_uses_each_group_once_and_no_forecast_twice(
    groups: int, test_groups: int
) -> None:
    paths = cpcv(groups, test_groups).paths()
    assert len(paths) == comb(groups - 1, test_groups - 1)
    taken = [(fold, group) for path in paths for group, fold in enumerate(path)]
    chosen = list(combinations(range(groups), test_groups))
    assert len(set(taken)) == len(taken) == len(chosen) * test_groups
    assert all(group in chosen[fold] for fold, group in taken)


@pytest.mark.parametrize(("groups", "test_groups"), [(6, 2), (5, 3)])
def test_backtest_paths_match_purgedcv(groups: int, test_groups: int) -> None:
    folds = cut(cpcv(groups, test_groups), random_table(3, rows=303))
    draw = np.random.default_rng(0)
    values = [draw.normal(size=fold.test.size) for fold in folds]
    rows, paths = backtest_paths(folds, values)
    tests = [fold.test for fold in folds]
    expected = purgedcv.reconstruct_paths(values, tests, groups, test_groups, 303)
    assert rows.tolist() == list(range(303))
    np.testing.assert_array_equal(paths, expected)


def test_k_folds_form_a_single_path() -> None:
    folds = cut(kfold(3), grid(9))
    assert [fold.groups for fold in folds] == [(FoldGroup(n, 0, 3),) for n in range(3)]
    rows, paths = backtest_paths(folds, [np.full(3, float(n)) for n in range(3)])
    assert rows.tolist() == list(range(9))
    assert paths.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]]


def test_val_is_the_last_training_rows_and_purged_on_both_sides() -> None:
    folds = cut(kfold(3, val_fraction=0.25, embargo=1), grid(12))
    assert [lists(fold) for fold in folds] == [
        [[6, 7], [9, 10, 11], [0, 1, 2, 3]],
        [[0], [2, 10, 11], [4, 5, 6, 7]],  # val lies on both sides of test
        [[0, 1, 2], [4, 5, 6], [8, 9, 10, 11]],
    ]
    assert folds[1].purged == {
        "purged: label overlaps that of a test row": 2,
        "embargo after the last test label": 1,
        "purged: label reaches into val": 1,
    }


def test_lockbox_is_excluded_and_purged() -> None:
    folds = cut(kfold(3, lockbox=0.25), grid(12))
    assert [lists(fold) for fold in folds] == [
        [[4, 5, 6, 7], [], [0, 1, 2]],
        [[0, 1, 7], [], [3, 4, 5]],
        [[0, 1, 2, 3, 4], [], [6, 7]],
    ]
    assert [fold.purged for fold in folds] == [
        {
            "purged: label overlaps that of a test row": 1,
            "purged: label reaches into the lockbox": 1,
            "lockbox: never looked at": 3,
        },
        {
            "purged: label overlaps that of a test row": 2,
            "purged: label reaches into the lockbox": 1,
            "lockbox: never looked at": 3,
        },
        {
            "purged: label overlaps that of a test row": 1,
            "purged: label reaches into the lockbox": 1,
            "lockbox: never looked at": 3,
        },
    ]


def purgedcv_folds(
    table: LabelledRows, k: int, test_groups: int | None, **settings: Any
) -> list[Any]:
    """Return the train and test indices of purgedcv."""
    known = {"prediction_times": table.time, "evaluation_times": table.label_end, **settings}
    if test_groups is None:
        return list(purgedcv.PurgedKFold(k, **known).split(table.time))
    return list(purgedcv.CombinatorialPurgedCV(k, test_groups, **known).split(table.time))


def assert_same(table: LabelledRows, k: int, test_groups: int | None, *, embargo: int = 0) -> None:
    settings = {"embargo": pd.Timedelta(minutes=embargo - 1)} if embargo else {}
    split = cpcv(k, test_groups, embargo=embargo) if test_groups else kfold(k, embargo=embargo)
    expected = purgedcv_folds(table, k, test_groups, **settings)
    for fold, (train, test) in zip(cut(split, table), expected, strict=True):
        assert fold.train.tolist() == train.tolist()
        assert fold.test.tolist() == test.tolist()


SCHEMES = [(2, None), (5, None), (7, None), (6, 2), (5, 3), (4, 1)]


@pytest.mark.parametrize(("k", "test_groups"), SCHEMES)
@pytest.mark.parametrize("seed", range(5))
def test_folds_match_purgedcv(seed: int, k: int, test_groups: int | None) -> None:
    assert_same(random_table(seed, rows=300 + seed), k, test_groups)


def uneven(seed: int) -> LabelledRows:
    """Create labels of different lengths, some of them across several groups."""
    table, draw = grid(240), np.random.default_rng(seed)
    ahead = np.where(draw.random(240) < 0.05, draw.integers(1, 90, 240), draw.integers(1, 5, 240))
    return table._replace(label_end=minutes(*(np.arange(240) + ahead)))


@pytest.mark.parametrize(("k", "test_groups"), SCHEMES)
@pytest.mark.parametrize("embargo", [0, 2, 15])
def test_uneven_labels_and_embargo_match_purgedcv(
    k: int, test_groups: int | None, embargo: int
) -> None:
    """The embargo of purgedcv is a closed interval after each label, which adds one bar."""
    for seed in range(3):
        assert_same(uneven(seed), k, test_groups, embargo=embargo)


@pytest.mark.parametrize("seed", range(3))
def test_purging_overlapping_contracts_matches_purgedcv(seed: int) -> None:
    table = random_table(seed, contracts=4)
    rows = np.arange(table.time.size)
    for fold in [*cut(kfold(5), table), *cut(cpcv(6, 2), table)]:
        others = np.setdiff1d(rows, fold.test)
        expected = purgedcv.purge(others, fold.test, table.time, table.label_end)
        assert fold.train.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 1}, r"split\.k=1 must be an integer >= 2"),
        ({"k": 5, "embargo": -1}, r"split\.embargo=-1; required: "),
        ({"k": 5, "val_fraction": 1.0}, r"split\.val_fraction=1\.0, split\.embargo=0; required: "),
        ({"k": 5, "lockbox": -0.1}, r"split\.lockbox=-0\.1 must be a share of all rows"),
        ({"k": 5, "refit": True}, r"raise val_fraction, or set split\.refit=false"),
    ],
)
def test_invalid_k_fold_settings_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kfold(**settings)


@pytest.mark.parametrize(
    ("groups", "test_groups", "message"),
    [
        (1, 1, r"split\.groups=1 must be an integer >= 2"),
        (6, 0, r"split\.test_groups=0 must be an integer >= 1"),
        (4, 4, r"split\.test_groups=4 must be below split\.groups=4"),
    ],
)
def test_invalid_groups_raise(groups: int, test_groups: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cpcv(groups, test_groups)


def test_fold_without_training_rows_raises_with_the_label_reach() -> None:
    message = (
        r"fold 0, test rows 0\.\.4, leaves no training row: labels reach 9 bars ahead and "
        r"embargo=0, in 10 rows\. Use fewer folds, a shorter horizon or a smaller embargo"
    )
    with pytest.raises(SplitError, match=message):
        purged_kfold(np.full(10, 9), folds=2, embargo=0)
    with pytest.raises(SplitError, match=r"labels reach 1 bars ahead and embargo=50, in 20 rows"):
        cut(kfold(4, embargo=50), grid(20))


def test_val_that_takes_all_training_rows_raises() -> None:
    with pytest.raises(SplitError, match=r"no training row: split\.val_fraction=0\.6, labels"):
        cut(kfold(2, val_fraction=0.6), grid(20))
    with pytest.raises(SplitError, match=r"no val row: split\.val_fraction=0\.01, labels"):
        cut(kfold(2, val_fraction=0.01), grid(20))


def test_group_without_rows_raises() -> None:
    with pytest.raises(SplitError, match="group 3 of 5 has no row to test: 3 labelled rows"):
        cut(kfold(5), grid(3))
    same = grid(6)._replace(time=minutes(*[0] * 6))
    with pytest.raises(SplitError, match="group 0 of 2 has no row to test"):
        cut(kfold(2), same)
