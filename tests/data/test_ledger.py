import numpy as np
import pytest

from robust_fin.data.examples import RowLedger, first_reasons


def mask(*rows: int) -> np.ndarray:
    return np.isin(np.arange(6), rows)


def test_a_row_counts_under_its_first_reason() -> None:
    reasons = {"a": mask(0, 1), "b": mask(1, 2), "c": mask(0, 1, 2), "d": mask(2, 5)}
    assert first_reasons(reasons) == {"a": 2, "b": 1, "d": 1}


def test_reasons_that_drop_nothing_are_left_out() -> None:
    assert first_reasons({}) == {}
    assert first_reasons({"a": mask(), "b": mask(3)}) == {"b": 1}


def test_a_ledger_says_where_every_row_went() -> None:
    ledger = RowLedger(10, {"a": 2}, {"train": 5, "val": 1, "test": 2}, {"late bars": 3.0})
    assert ledger.as_dict() == {
        "rows_in": 10,
        "dropped": {"a": 2},
        "spans": {"train": 5, "val": 1, "test": 2},
        "reports": {"late bars": 3.0},
    }


def test_a_ledger_that_does_not_add_up_cannot_be_made() -> None:
    with pytest.raises(AssertionError, match="9 rows accounted for, 10 came in"):
        RowLedger(10, {"a": 2}, {"train": 5, "val": 0, "test": 2}, {})
