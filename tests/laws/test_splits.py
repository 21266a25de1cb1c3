"""Properties of every split in conf/split, on random tables."""

from functools import cache
from itertools import combinations
from math import comb

import numpy as np

from robust_fin.cli.composition import conf_folder
from robust_fin.data.splits import (
    INTO_LOCKBOX,
    LOCKED,
    Fold,
    Holdout,
    LabelledRows,
    Split,
    backtest_paths,
)
from robust_fin.data.time_series_folds import Cpcv, PurgedKFold, WalkForward
from tests.bars import config, instantiate
from tests.for_every import for_every
from tests.labelled_rows import cut, overlap, random_table

CHOICES = sorted(path.stem for path in (conf_folder() / "split").glob("*.yaml"))
SETTINGS = {
    "defaults": (),
    "no val": ("split.val_fraction=0.0",),
    "val": ("split.val_fraction=0.15",),
    "lockbox": ("split.val_fraction=0.1", "split.lockbox=0.15", "split.embargo=4"),
    "refit": ("split.val_fraction=0.1", "split.refit=true", "split.embargo=9"),
}
WALKS = {
    "block per date": ("split.by=trading_date", "split.test_blocks=null", "split.window=3"),
    "block per contract": ("split.by=contract", "split.test_blocks=null"),
    "window without val": (
        "split.by=rows",
        "split.test_blocks=3",
        "split.window=120",
        "split.val_fraction=0.0",
    ),
    "rows": ("split.by=rows", "split.test_blocks=3", "split.first_test=0.4", "split.window=120"),
}
SCHEMES = [(choice, overrides) for choice in CHOICES for overrides in SETTINGS.values()]
SCHEMES += [("walk_forward", overrides) for overrides in WALKS.values()]
SCHEMES += [("cpcv", ("split.groups=7", "split.test_groups=3", "split.embargo=2"))]
TABLES = [(0, 1), (2, 4)]  # seed and contracts
CASES = [
    (choice, overrides, *table)
    for choice, overrides in SCHEMES
    for table in TABLES
    if table[1] > 1 or "split.by=contract" not in overrides
]

every_case = for_every("choice, overrides, seed, contracts", CASES)


@cache
def split_of(choice: str, overrides: tuple[str, ...]) -> Split:
    return instantiate(config(f"split={choice}", *overrides).split)


@cache
def table_of(seed: int, contracts: int) -> LabelledRows:
    return random_table(seed, contracts=contracts)


@cache
def case(
    choice: str, overrides: tuple[str, ...], seed: int, contracts: int
) -> tuple[Split, LabelledRows, tuple[Fold, ...]]:
    split, table = split_of(choice, overrides), table_of(seed, contracts)
    return split, table, cut(split, table)


def spans_of(fold: Fold) -> list[np.ndarray]:
    return [fold.train, fold.val, fold.test]


@every_case
def test_every_row_is_in_one_span_or_dropped_for_one_reason(
    choice, overrides, seed, contracts
) -> None:
    split, table, folds = case(choice, overrides, seed, contracts)
    assert len(folds) >= 1
    for fold in folds:
        used = np.concatenate(spans_of(fold))
        assert np.unique(used).size == used.size
        assert used.size + sum(fold.purged.values()) == table.time.size
        assert all(count > 0 for count in fold.purged.values())
        assert all((np.diff(rows) > 0).all() for rows in spans_of(fold))
        assert fold.train.size > 0
        assert fold.test.size > 0
        assert (fold.val.size > 0) == (split.val_fraction > 0)


@every_case
def test_no_label_reaches_from_one_span_into_another(choice, overrides, seed, contracts) -> None:
    _, table, folds = case(choice, overrides, seed, contracts)
    for fold in folds:
        for some, others in combinations(spans_of(fold), 2):
            assert not overlap(table, some, others).any()
            assert not np.isin(table.time[some], table.time[others]).any()


@every_case
def test_no_more_rows_are_purged_than_overlap_test(choice, overrides, seed, contracts) -> None:
    """Train contains exactly the rows whose labels do not overlap test."""
    split, table, folds = case(choice, overrides, seed, contracts)
    if split.embargo or split.lockbox or split.val_fraction:
        return
    rows = np.arange(table.time.size)
    for fold in folds:
        free = ~overlap(table, rows, fold.test).any(axis=1)
        if isinstance(split, WalkForward | Holdout):
            free &= rows < fold.test[0]
        if isinstance(split, WalkForward):
            free &= rows >= fold.train[0]
        assert fold.train.tolist() == np.flatnonzero(free).tolist()


def times_tested(split: Split, rows: int, folds: tuple[Fold, ...]) -> np.ndarray:
    """Count how often the split tests each row, ignoring the lockbox."""
    match split:
        case PurgedKFold():
            return np.ones(rows, dtype=int)
        case Cpcv():
            return np.full(rows, comb(split.groups - 1, split.test_groups - 1))
        case _:
            return (np.arange(rows) >= folds[0].test[0]).astype(int)


@every_case
def test_every_row_is_tested_as_often_as_the_split_defines(
    choice, overrides, seed, contracts
) -> None:
    split, table, folds = case(choice, overrides, seed, contracts)
    rows = table.time.size
    seen = np.bincount(np.concatenate([fold.test for fold in folds]), minlength=rows)
    expected = times_tested(split, rows, folds)
    locked = sum(fold.purged.get(LOCKED, 0) for fold in folds[:1])
    if locked:
        expected[table.label_end > table.time[rows - locked]] = 0
        expected[rows - locked :] = 0
    assert seen.tolist() == expected.tolist()
    assert seen.max() >= 1


@every_case
def test_no_span_reaches_into_the_lockbox(choice, overrides, seed, contracts) -> None:
    split, table, folds = case(choice, overrides, seed, contracts)
    rows = table.time.size
    first = round(rows * (1 - split.lockbox))
    first = first if first == rows else int(np.searchsorted(table.time, table.time[first]))
    for fold in folds:
        assert fold.purged.get(LOCKED, 0) == rows - first
        if first < rows:
            used = np.concatenate(spans_of(fold))
            assert used.max() < first
            assert table.label_end[used].max() <= table.time[first]
        else:
            assert INTO_LOCKBOX not in fold.purged


@every_case
def test_without_val_keeps_the_test_spans(choice, overrides, seed, contracts) -> None:
    split, table, folds = case(choice, overrides, seed, contracts)
    again = cut(split.without_val(), table)
    assert not split.without_val().refit
    assert len(again) == len(folds)
    for fold, other in zip(folds, again, strict=True):
        assert np.array_equal(fold.test, other.test)
        assert other.val.size == 0
        assert np.isin(np.concatenate([fold.train, fold.val]), other.train).all()


@every_case
def test_test_rows_have_one_group_and_one_path(choice, overrides, seed, contracts) -> None:
    _, _, folds = case(choice, overrides, seed, contracts)
    for fold in folds:
        assert fold.test_group().shape == fold.test_path().shape == fold.test.shape
        assert (np.diff(fold.test_group()) >= 0).all()
    rows, groups, paths = (
        np.concatenate([part(fold) for fold in folds])
        for part in (lambda fold: fold.test, Fold.test_group, Fold.test_path)
    )
    pairs = len(set(zip(rows.tolist(), groups.tolist(), strict=True)))
    assert pairs == np.unique(rows).size  # a row has the same group in all folds
    path_rows = len(set(zip(rows.tolist(), paths.tolist(), strict=True)))
    assert path_rows == rows.size  # and no path contains it twice


@every_case
def test_every_path_contains_every_tested_row(choice, overrides, seed, contracts) -> None:
    split, table, folds = case(choice, overrides, seed, contracts)
    numbers = [np.full(fold.test.size, float(number)) for number, fold in enumerate(folds)]
    rows, paths = backtest_paths(folds, numbers)
    assert rows.tolist() == sorted(set(np.concatenate([fold.test for fold in folds]).tolist()))
    scheme = times_tested(split, table.time.size, folds)
    assert paths.shape == (scheme.max(), rows.size)
    for number, fold in enumerate(folds):
        taken = np.isin(rows, fold.test)
        assert ((paths == number).sum(axis=0) == taken).all()
