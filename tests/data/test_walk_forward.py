from typing import Any

import numpy as np
import pandas as pd
import pytest
from purgedcv import WalkForwardSplit, purge

from robust_fin.data.splits import Fold, Holdout, LabelledRows
from robust_fin.data.time_series_folds import WalkForward, contract_starts
from robust_fin.errors import ConfigError, SplitError
from tests.tables import cut, grid, lists, minutes, random_table

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


def run(first: int, last: int) -> list[int]:
    """first..last, both in."""
    return list(range(first, last + 1))


def test_train_grows_up_to_each_block_less_the_label_that_reaches_into_it() -> None:
    # labels end with the next bar: the last row before a border reaches across it
    assert spans(walk(), grid(20)) == [
        [run(0, 8), [], run(10, 14)],
        [run(0, 13), [], run(15, 19)],
    ]


def test_val_is_the_last_part_before_the_block() -> None:
    folds = cut(walk(val_fraction=0.2), grid(20))
    assert [lists(fold) for fold in folds] == [
        [run(0, 4), run(6, 8), run(10, 14)],
        [run(0, 9), run(11, 13), run(15, 19)],
    ]
    assert [fold.purged for fold in folds] == [
        {
            "purged: label reaches into the next span": 2,
            "outside this fold: after its test span": 5,
        },
        {"purged: label reaches into the next span": 2},
    ]


def test_an_embargo_is_on_top_of_the_purge_before_each_border() -> None:
    first, second = cut(walk(val_fraction=0.2, embargo=2), grid(20))
    assert lists(first) == [run(0, 2), [6], run(10, 14)]
    assert lists(second) == [run(0, 7), [11], run(15, 19)]
    assert second.purged == {
        "purged: label reaches into the next span": 2,
        "embargo before the next span": 4,
    }


def test_a_window_rolls() -> None:
    first, second = cut(walk(window=6), grid(20))
    assert lists(first) == [run(4, 8), [], run(10, 14)]
    assert lists(second) == [run(9, 13), [], run(15, 19)]
    assert second.purged == {
        "purged: label reaches into the next span": 1,
        "outside this fold: before its window": 9,
    }


def test_the_window_holds_train_and_val() -> None:
    split = walk(window=6, val_fraction=0.1, refit=True)
    assert spans(split, grid(20, reach=1)) == [
        [run(4, 7), [8, 9], run(10, 14)],
        [run(9, 12), [13, 14], run(15, 19)],
    ]
    assert spans(split.without_val(), grid(20, reach=1)) == [
        [run(4, 9), [], run(10, 14)],
        [run(9, 14), [], run(15, 19)],
    ]


def test_blocks_differ_by_a_unit_at_most() -> None:
    tests = [fold.test.tolist() for fold in cut(walk(test_blocks=3), grid(20))]
    assert tests == [run(10, 13), run(14, 16), run(17, 19)]


def test_rows_of_one_stamp_stay_in_one_block() -> None:
    time = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # two contracts a stamp
    table = grid(10)._replace(time=minutes(*time), label_end=minutes(*[at + 1 for at in time]))
    assert spans(walk(test_blocks=3), table) == [  # the borders 5, 7, 9 fall to 4, 6, 8
        [run(0, 3), [], [4, 5]],
        [run(0, 5), [], [6, 7]],
        [run(0, 7), [], [8, 9]],
    ]


DATES = grid(20, reach=1, dates=[3, 5, 4, 2, 6])  # they start at 0, 3, 8, 12, 14


@pytest.mark.parametrize(
    ("blocks", "tests"),
    [
        (1, [run(8, 19)]),
        (2, [run(8, 13), run(14, 19)]),
        (3, [run(8, 11), [12, 13], run(14, 19)]),
        (None, [run(8, 11), [12, 13], run(14, 19)]),
    ],
)
def test_blocks_are_whole_trading_dates(blocks: int | None, tests: list[list[int]]) -> None:
    split = walk(by="trading_date", test_blocks=blocks, first_test=0.45)  # nearest to row 9
    assert [fold.test.tolist() for fold in cut(split, DATES)] == tests


def test_a_window_of_trading_dates() -> None:
    split = walk(by="trading_date", test_blocks=None, first_test=0.6, window=2)
    assert spans(split, DATES) == [
        [run(3, 11), [], [12, 13]],
        [run(8, 13), [], run(14, 19)],
    ]


def overlapping() -> LabelledRows:
    """Contracts A to minute 5, B from 3 to 9, C from 8 on, one row a minute and contract."""
    rows = [(at, "A") for at in range(6)] + [(at, "B") for at in range(3, 10)]
    rows = sorted(rows + [(at, "C") for at in range(8, 15)])
    time = [at for at, _ in rows]
    return LabelledRows(
        minutes(*time),
        minutes(*[at + 1 for at in time]),
        minutes(*time).astype("datetime64[D]") + np.array(time) // 6,
        pd.Categorical([code for _, code in rows], categories=["A", "B", "C"]),
    )


def test_a_contracts_block_is_the_time_in_which_it_is_the_next_to_expire() -> None:
    table = overlapping()
    split = walk(by="contract", test_blocks=None, first_test=0.3)
    folds = cut(split, table)
    stamps = (table.time - minutes(0)[0]).astype("timedelta64[m]").astype(int)
    assert [sorted(set(stamps[fold.test].tolist())) for fold in folds] == [run(6, 9), run(10, 14)]
    assert sorted(set(stamps[folds[0].train].tolist())) == run(0, 5)
    rolling = cut(walk(by="contract", test_blocks=None, window=1), table)
    assert sorted(set(stamps[rolling[1].train].tolist())) == run(6, 9)
    assert [fold.test_group().tolist()[:1] for fold in folds] == [[0], [1]]


def test_contracts_that_end_on_one_trading_date_share_a_block() -> None:
    table = overlapping()
    starts = contract_starts(table.time, table.trading_date, table.contract)
    assert table.time[starts].astype("datetime64[m]").astype(int).tolist() == [0, 6, 10]
    one_date = np.zeros(table.time.size).astype("datetime64[D]")
    assert contract_starts(table.time, one_date, table.contract).tolist() == [0]
    last_two = np.where(table.time < minutes(9)[0], one_date, one_date + 1)
    starts = contract_starts(table.time, last_two, table.contract)
    assert table.time[starts].astype("datetime64[m]").astype(int).tolist() == [0, 6]


def test_where_contracts_follow_each_other_a_block_is_its_rows() -> None:
    codes = pd.Categorical(["Z"] * 7 + ["H"] * 8 + ["M"] * 5, categories=["Z", "U", "H", "M"])
    table = grid(20, reach=1, dates=[5, 5, 5, 5])._replace(contract=codes)
    folds = cut(walk(by="contract", test_blocks=None, first_test=0.3), table)
    assert [fold.test.tolist() for fold in folds] == [run(7, 14), run(15, 19)]


def test_the_lockbox_is_left_out_and_purged_against() -> None:
    first, second = cut(walk(lockbox=0.2), grid(20))
    assert lists(first) == [run(0, 8), [], run(10, 12)]
    assert lists(second) == [run(0, 11), [], [13, 14]]
    assert second.purged == {
        "purged: label reaches into the next span": 1,
        "purged: label reaches into the lockbox": 1,
        "lockbox: never looked at": 4,
    }


def test_a_unit_of_which_the_lockbox_leaves_no_row_to_test_makes_no_block() -> None:
    split = walk(by="trading_date", test_blocks=None, first_test=0.4, lockbox=0.3)
    table = grid(20, reach=2, dates=[4, 4, 5, 7])  # row 13, the last before the lockbox, reaches
    assert [fold.test.tolist() for fold in cut(split, table)] == [run(8, 12)]
    assert cut(split, table)[0].purged["purged: label reaches into the lockbox"] == 1


def test_one_block_of_rows_is_the_holdout() -> None:
    table = LabelledRows(*(part[:440] for part in random_table(5, contracts=3)))
    assert np.unique(table.time).size < table.time.size == 440
    split = walk(test_blocks=1, first_test=0.8, val_fraction=0.1, embargo=3)
    (fold,) = cut(split, table)
    (holdout,) = cut(Holdout(val_fraction=0.1, test_fraction=0.2, embargo=3, refit=False), table)
    assert lists(fold) == lists(holdout)
    assert fold.purged == holdout.purged


@pytest.mark.parametrize("seed", range(4))
def test_index_sets_are_those_of_purgedcv(seed: int) -> None:
    table = random_table(seed, rows=480)
    theirs = WalkForwardSplit(
        4, 60, prediction_times=table.time, evaluation_times=table.label_end
    ).split(table.time)
    for fold, (train, test) in zip(cut(walk(test_blocks=4), table), theirs, strict=True):
        assert fold.train.tolist() == train.tolist()
        assert fold.test.tolist() == test.tolist()


@pytest.mark.parametrize("by", ["rows", "trading_date", "contract"])
def test_what_is_purged_among_overlapping_contracts_is_what_purgedcv_purges(by: str) -> None:
    table = random_table(7, contracts=4)
    folds = cut(walk(by=by, first_test=0.4), table)
    for fold in folds:
        before = np.arange(fold.test[0])
        expected = purge(before, fold.test, table.time, table.label_end)
        assert fold.train.tolist() == expected.tolist()
        assert len(expected) < len(before)


def said(**settings: Any) -> Fold:
    return cut(walk(**settings), grid(20, dates=[10, 10]))[0]


@pytest.mark.parametrize(
    ("settings", "words"),
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
        ({"embargo": -1}, r"split\.val_fraction=0\.0, split\.embargo=-1: needed are"),
        ({"lockbox": 1.0}, r"split\.lockbox=1\.0 must be a share of all rows"),
        ({"refit": True}, r"split\.refit=true needs a val span to choose on: raise val_fraction"),
    ],
)
def test_impossible_settings_are_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        walk(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
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
def test_what_cannot_be_cut_is_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SplitError, match=words):
        said(**settings)


@pytest.mark.parametrize("by", ["rows", "trading_date", "contract"])
def test_a_lockbox_of_all_rows_is_said(by: str) -> None:
    split = walk(by=by, test_blocks=1, first_test=0.05, lockbox=0.9)
    with pytest.raises(SplitError, match=r"split\.first_test=0\.05 of 3 labelled rows"):
        cut(split, grid(3))
