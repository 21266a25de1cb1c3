from typing import Any

import numpy as np
import pandas as pd
import pytest
from purgedcv import WalkForwardSplit, purge

from robust_fin.data.splits import Fold, Holdout, LabelledRows
from robust_fin.data.time_series_folds import WalkForward, contract_starts
from robust_fin.errors import ConfigError, SplitError
from tests.labelled_rows import cut, grid, lists, minutes, random_table

SETTINGS: dict[str, Any] = {
    "by": "rows",
    "test_blocks": 2,
    "first_test": 0.5,
    "window": None,
    "val_fraction": 0.0,
    "embargo": 0,
    "lockbox": 0.0,
    "refit": False,
}


def walk(**settings: Any) -> WalkForward:
    return WalkForward(**SETTINGS | settings)


def spans(split: WalkForward, table: LabelledRows) -> list[list[list[int]]]:
    return [lists(fold) for fold in cut(split, table)]


def interval(first: int, last: int) -> list[int]:
    """Return the integers from first to last, both included."""
    return list(range(first, last + 1))


def test_train_grows_and_is_purged_before_each_block() -> None:
    # labels end with the next bar, so the last row before a border reaches across it
    assert spans(walk(), grid(20)) == [
        [interval(0, 8), [], interval(10, 14)],
        [interval(0, 13), [], interval(15, 19)],
    ]


def test_val_is_the_last_part_before_the_block() -> None:
    folds = cut(walk(val_fraction=0.2), grid(20))
    assert [lists(fold) for fold in folds] == [
        [interval(0, 4), interval(6, 8), interval(10, 14)],
        [interval(0, 9), interval(11, 13), interval(15, 19)],
    ]
    assert [fold.purged for fold in folds] == [
        {
            "purged: label reaches into the next span": 2,
            "outside this fold: after its test span": 5,
        },
        {"purged: label reaches into the next span": 2},
    ]


def test_embargo_is_added_to_the_purge_before_each_border() -> None:
    first, second = cut(walk(val_fraction=0.2, embargo=2), grid(20))
    assert lists(first) == [interval(0, 2), [6], interval(10, 14)]
    assert lists(second) == [interval(0, 7), [11], interval(15, 19)]
    assert second.purged == {
        "purged: label reaches into the next span": 2,
        "embargo before the next span": 4,
    }


def test_window_moves_with_the_block() -> None:
    first, second = cut(walk(window=6), grid(20))
    assert lists(first) == [interval(4, 8), [], interval(10, 14)]
    assert lists(second) == [interval(9, 13), [], interval(15, 19)]
    assert second.purged == {
        "purged: label reaches into the next span": 1,
        "outside this fold: before its window": 9,
    }


def test_window_contains_train_and_val() -> None:
    split = walk(window=6, val_fraction=0.1, refit=True)
    assert spans(split, grid(20, reach=1)) == [
        [interval(4, 7), [8, 9], interval(10, 14)],
        [interval(9, 12), [13, 14], interval(15, 19)],
    ]
    assert spans(split.without_val(), grid(20, reach=1)) == [
        [interval(4, 9), [], interval(10, 14)],
        [interval(9, 14), [], interval(15, 19)],
    ]


def test_block_sizes_differ_by_at_most_one_unit() -> None:
    tests = [fold.test.tolist() for fold in cut(walk(test_blocks=3), grid(20))]
    assert tests == [interval(10, 13), interval(14, 16), interval(17, 19)]


def test_rows_of_the_same_time_stay_in_the_same_block() -> None:
    time = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # two contracts per time
    table = grid(10)._replace(
        time=minutes(*time), label_end=minutes(*[minute + 1 for minute in time])
    )
    assert spans(walk(test_blocks=3), table) == [  # the borders 5, 7, 9 move to 4, 6, 8
        [interval(0, 3), [], [4, 5]],
        [interval(0, 5), [], [6, 7]],
        [interval(0, 7), [], [8, 9]],
    ]


DATES = grid(20, reach=1, dates=[3, 5, 4, 2, 6])  # the dates start at rows 0, 3, 8, 12, 14


@pytest.mark.parametrize(
    ("blocks", "tests"),
    [
        (1, [interval(8, 19)]),
        (2, [interval(8, 13), interval(14, 19)]),
        (3, [interval(8, 11), [12, 13], interval(14, 19)]),
        (None, [interval(8, 11), [12, 13], interval(14, 19)]),
    ],
)
def test_blocks_are_whole_trading_dates(blocks: int | None, tests: list[list[int]]) -> None:
    split = walk(by="trading_date", test_blocks=blocks, first_test=0.45)  # nearest to row 9
    assert [fold.test.tolist() for fold in cut(split, DATES)] == tests


def test_window_of_trading_dates() -> None:
    split = walk(by="trading_date", test_blocks=None, first_test=0.6, window=2)
    assert spans(split, DATES) == [
        [interval(3, 11), [], [12, 13]],
        [interval(8, 13), [], interval(14, 19)],
    ]


def overlapping() -> LabelledRows:
    """Create contract A until minute 5, B from 3 to 9, C from 8: a row per minute and contract."""
    rows = [(minute, "A") for minute in range(6)] + [(minute, "B") for minute in range(3, 10)]
    rows = sorted(rows + [(minute, "C") for minute in range(8, 15)])
    time = [minute for minute, _ in rows]
    return LabelledRows(
        minutes(*time),
        minutes(*[minute + 1 for minute in time]),
        minutes(*time).astype("datetime64[D]") + np.array(time) // 6,
        pd.Categorical([code for _, code in rows], categories=["A", "B", "C"]),
    )


def test_block_of_a_contract_is_the_time_when_it_expires_next() -> None:
    table = overlapping()
    split = walk(by="contract", test_blocks=None, first_test=0.3)
    folds = cut(split, table)
    stamps = (table.time - minutes(0)[0]).astype("timedelta64[m]").astype(int)
    assert [sorted(set(stamps[fold.test].tolist())) for fold in folds] == [
        interval(6, 9),
        interval(10, 14),
    ]
    assert sorted(set(stamps[folds[0].train].tolist())) == interval(0, 5)
    rolling = cut(walk(by="contract", test_blocks=None, window=1), table)
    assert sorted(set(stamps[rolling[1].train].tolist())) == interval(6, 9)
    assert [fold.test_group().tolist()[:1] for fold in folds] == [[0], [1]]


def test_contracts_that_end_on_the_same_date_share_a_block() -> None:
    table = overlapping()
    starts = contract_starts(table.time, table.trading_date, table.contract)
    assert table.time[starts].astype("datetime64[m]").astype(int).tolist() == [0, 6, 10]
    one_date = np.zeros(table.time.size).astype("datetime64[D]")
    assert contract_starts(table.time, one_date, table.contract).tolist() == [0]
    last_two = np.where(table.time < minutes(9)[0], one_date, one_date + 1)
    starts = contract_starts(table.time, last_two, table.contract)
    assert table.time[starts].astype("datetime64[m]").astype(int).tolist() == [0, 6]


def test_block_of_a_contract_without_overlap_is_its_rows() -> None:
    codes = pd.Categorical(["Z"] * 7 + ["H"] * 8 + ["M"] * 5, categories=["Z", "U", "H", "M"])
    table = grid(20, reach=1, dates=[5, 5, 5, 5])._replace(contract=codes)
    folds = cut(walk(by="contract", test_blocks=None, first_test=0.3), table)
    assert [fold.test.tolist() for fold in folds] == [interval(7, 14), interval(15, 19)]


def test_lockbox_is_excluded_and_purged() -> None:
    first, second = cut(walk(lockbox=0.2), grid(20))
    assert lists(first) == [interval(0, 8), [], interval(10, 12)]
    assert lists(second) == [interval(0, 11), [], [13, 14]]
    assert second.purged == {
        "purged: label reaches into the next span": 1,
        "purged: label reaches into the lockbox": 1,
        "lockbox: never looked at": 4,
    }


def test_unit_without_test_rows_before_the_lockbox_is_not_a_block() -> None:
    split = walk(by="trading_date", test_blocks=None, first_test=0.4, lockbox=0.3)
    table = grid(20, reach=2, dates=[4, 4, 5, 7])  # the label of row 13 reaches the lockbox
    assert [fold.test.tolist() for fold in cut(split, table)] == [interval(8, 12)]
    assert cut(split, table)[0].purged["purged: label reaches into the lockbox"] == 1


def test_single_block_of_rows_equals_holdout() -> None:
    table = LabelledRows(*(part[:440] for part in random_table(5, contracts=3)))
    assert np.unique(table.time).size < table.time.size == 440
    split = walk(test_blocks=1, first_test=0.8, val_fraction=0.1, embargo=3)
    (fold,) = cut(split, table)
    (holdout,) = cut(Holdout(val_fraction=0.1, test_fraction=0.2, embargo=3, refit=False), table)
    assert lists(fold) == lists(holdout)
    assert fold.purged == holdout.purged


@pytest.mark.parametrize("seed", range(4))
def test_folds_match_purgedcv(seed: int) -> None:
    table = random_table(seed, rows=480)
    theirs = WalkForwardSplit(
        4, 60, prediction_times=table.time, evaluation_times=table.label_end
    ).split(table.time)
    for fold, (train, test) in zip(cut(walk(test_blocks=4), table), theirs, strict=True):
        assert fold.train.tolist() == train.tolist()
        assert fold.test.tolist() == test.tolist()


@pytest.mark.parametrize("by", ["rows", "trading_date", "contract"])
def test_purging_overlapping_contracts_matches_purgedcv(by: str) -> None:
    table = random_table(7, contracts=4)
    folds = cut(walk(by=by, first_test=0.4), table)
    for fold in folds:
        before = np.arange(fold.test[0])
        expected = purge(before, fold.test, table.time, table.label_end)
        assert fold.train.tolist() == expected.tolist()
        assert len(expected) < len(before)


def first_fold(**settings: Any) -> Fold:
    return cut(walk(**settings), grid(20, dates=[10, 10]))[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "weeks"}, r"split\.by=weeks must be one of rows, trading_date, contract"),
        ({"test_blocks": 0}, r"split\.test_blocks=0 must be an integer >= 1"),
        ({"window": 0}, r"split\.window=0 must be an integer >= 1"),
        ({"test_blocks": None}, r"split\.test_blocks=null .* with split\.by=rows give a number"),
        (
            {"val_fraction": 0.5},
            r"split\.first_test=0\.5 must lie above split\.val_fraction=0\.5 and below 1 - "
            r"split\.lockbox=0\.0",
        ),
        ({"first_test": 0.9, "lockbox": 0.1}, r"below 1 - split\.lockbox=0\.1"),
        ({"embargo": -1}, r"split\.val_fraction=0\.0, split\.embargo=-1; required: "),
        ({"lockbox": 1.0}, r"split\.lockbox=1\.0 must be a share of all rows"),
        ({"refit": True}, r"split\.refit=true needs a val span to choose on: raise val_fraction"),
    ],
)
def test_invalid_settings_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        walk(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"by": "trading_date"},
            r"split\.test_blocks=2: only 1 of 2 trading dates come after split\.first_test=0\.5 "
            r"of 20 labelled rows, and before the lockbox\. Use fewer blocks",
        ),
        (
            {"by": "contract", "test_blocks": None},
            r"split\.test_blocks=null: only 0 of 1 contracts come after",
        ),
        (
            {"by": "rows", "window": 11},
            r"split\.window=11 rows before each test block, but only 10 come before the first",
        ),
        (
            {"val_fraction": 0.45},
            r"fold 0: split\.first_test=0\.5, split\.test_blocks=2, split\.window=null, "
            r"split\.val_fraction=0\.45, split\.embargo=0 leave no train row of 20 labelled rows",
        ),
        ({"val_fraction": 0.1, "embargo": 1}, "leave no val row of 20 labelled rows"),
    ],
)
def test_unusable_split_raises_with_the_numbers(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        first_fold(**settings)


@pytest.mark.parametrize("by", ["rows", "trading_date", "contract"])
def test_lockbox_of_all_rows_raises(by: str) -> None:
    split = walk(by=by, test_blocks=1, first_test=0.05, lockbox=0.9)
    with pytest.raises(SplitError, match=r"split\.first_test=0\.05 of 3 labelled rows"):
        cut(split, grid(3))
