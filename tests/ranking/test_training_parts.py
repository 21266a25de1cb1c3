import numpy as np
import pytest

from robust_fin.data.folds import cut_folds
from robust_fin.data.splits import Holdout, Split
from robust_fin.data.targets import RankTarget
from robust_fin.data.time_series_folds import PurgedKFold, WalkForward
from robust_fin.errors import SplitError
from robust_fin.ranking.learners import TrainingPart, TrainingSpan
from tests.candidates import elsewhere_changed, planted

HOLDOUT = Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False)
WALK = WalkForward(
    by="trading_date", test_blocks=3, first_test=0.5, window=None, val_fraction=0.1, embargo=0,
    lockbox=0.0, refit=False,
)  # fmt: skip
KFOLD = PurgedKFold(k=4, val_fraction=0.0, embargo=0, lockbox=0.0, refit=False)


def span(split: Split = HOLDOUT, *, number: int = 0, embargo: int = 0) -> TrainingSpan:
    names, one = planted(6_000)
    return TrainingSpan.of(one, cut_folds(one, split), number, names=names, embargo=embargo)


def same(one: TrainingPart, other: TrainingPart) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_parts_follow_each_other_and_what_is_fitted_for_them() -> None:
    parts, train = list(span().parts(4, first=0.4)), span()
    dates = [np.unique(one.trading_date) for one in parts]
    assert [one.size for one in dates] == [13, 13, 12, 12]  # 84 dates, from the 35th on
    assert np.array_equal(
        np.concatenate(dates), np.unique(train.examples.trading_date[train.rows])[-50:]
    )
    fitted = [one.fit_x.shape[0] for one in parts]
    scored = [len(one.x) for one in parts]
    assert fitted == [fitted[0] + sum(scored[:number]) for number in range(4)]
    assert parts[0].fit_x.shape[1] == 5


def test_a_label_that_reaches_into_a_part_is_purged_and_an_embargo_takes_more() -> None:
    def fitted(embargo: int) -> list[int]:
        return [one.fit_x.shape[0] for one in span(embargo=embargo).parts(2, first=0.5)]

    plain, apart = fitted(0), fitted(10)
    assert [a - b for a, b in zip(plain, apart, strict=True)] == [10, 10]


def test_target_and_transform_are_those_of_the_fitted_rows() -> None:
    one = next(span().parts(4, first=0.4))
    train = span()
    rows = train.rows[: one.fit_x.shape[0]]
    target = RankTarget.fit(train.examples.outcome[rows])
    assert np.array_equal(one.fit_target, target.transform(train.examples.outcome[rows]))
    assert np.array_equal(one.target, target.transform(one.outcome))
    assert one.trivial == target.median
    assert (
        np.abs(np.quantile(one.fit_x, [0.1, 0.5, 0.9], axis=0).T[0] - [-1.28, 0, 1.28]).max() < 0.1
    )


def test_some_features_alone_are_what_they_are_among_all() -> None:
    whole, some = (
        next(span().parts(3, first=0.5)),
        next(span().parts(3, first=0.5, names=["weak", "noise"])),
    )
    assert np.array_equal(some.x, whole.x[:, [3, 0]])
    assert np.array_equal(some.fit_x, whole.fit_x[:, [3, 0]])


@pytest.mark.parametrize(("split", "number"), [(HOLDOUT, 0), (WALK, 0), (WALK, 2), (KFOLD, 1)])
def test_no_row_of_another_span_is_read(split: Split, number: int) -> None:
    before = span(split, number=number)
    changed = elsewhere_changed(before.examples, before.rows)
    assert (changed.outcome != before.examples.outcome).sum() > 500
    after = TrainingSpan.of(
        changed, cut_folds(changed, split), number, names=before.names, embargo=0
    )
    pairs = list(zip(before.parts(3, first=0.5), after.parts(3, first=0.5), strict=True))
    assert len(pairs) == 3
    assert all(same(one, other) for one, other in pairs)
    assert np.array_equal(before.x(most=500), after.x(most=500))


def test_rows_that_another_fold_judges_are_counted() -> None:
    assert span(HOLDOUT).judged == 0
    assert span(WALK, number=0).judged == 0
    later = span(WALK, number=1)
    assert 0 < later.judged < later.rows.size
    fold = span(KFOLD, number=1)
    assert fold.judged == fold.rows.size


def test_evenly_spaced_rows_are_no_more_than_asked_for() -> None:
    one = span()
    assert len(one.x(most=1_000)) <= 1_000
    assert np.array_equal(one.x(most=10**9), one.examples.features[one.rows])


def test_too_few_dates_are_an_error_that_counts_them() -> None:
    with pytest.raises(SplitError, match=r"100 parts after the first 0\.5 .* 84 trading dates"):
        next(span().parts(100, first=0.5))
