"""Tests of the decorator `for_every`."""

from pathlib import Path

import pytest

from tests.for_every import for_every

seen: list[tuple[int, Path]] = []


@for_every("number", [1, 2, 3])
def test_every_case_runs_with_the_fixtures(number: int, tmp_path: Path) -> None:
    seen.append((number, tmp_path))
    if number == 3:
        assert seen == [(1, tmp_path), (2, tmp_path), (3, tmp_path)]


def test_all_failing_cases_are_reported_by_name() -> None:
    tried = []

    @for_every("word, number", [("a", 1), ("b", 2), ("c", 3), ("d", 4)])
    def test(word: str, number: int) -> None:
        tried.append(word)
        if word == "a":
            pytest.fail("a fails")
        if word == "d":
            with pytest.raises(ValueError, match="not raised"):
                pass
        assert number != 3

    with pytest.raises(BaseExceptionGroup, match="3 of 4 cases fail: a 1, c 3, d 4") as caught:
        test()
    assert tried == ["a", "b", "c", "d"]
    notes = [error.__notes__ for error in caught.value.exceptions]
    assert notes == [["in the case a 1"], ["in the case c 3"], ["in the case d 4"]]


def test_no_cases_fail() -> None:
    @for_every("path", [])
    def test(path: Path) -> None:
        raise ValueError(path)

    with pytest.raises(AssertionError, match="there are no cases"):
        test()


def test_skipped_case_skips_the_test() -> None:
    @for_every("number", [1])
    def test(number: int) -> None:
        pytest.skip(f"no {number}")

    with pytest.raises(pytest.skip.Exception, match="no 1"):
        test()
