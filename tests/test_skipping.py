"""Which tests may be skipped in continuous integration."""

import pytest

from tests.skipping import fail_instead_of_skipping


def skipped(reason: str) -> pytest.TestReport:
    where = ("tests/test_some.py", 7, f"Skipped: {reason}")
    return pytest.TestReport(
        "tests/test_some.py::test_some", ("tests/test_some.py", 7, "test_some"), {}, "skipped",
        where, "setup",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("could not import 'optuna': No module named 'optuna'", "failed"),
        ("none of chromium, google-chrome is installed", "failed"),
        ("reads /proc", "failed"),
        ("unconditional skip", "failed"),
        ("/data/vix_daily.csv is absent", "skipped"),
        ("there is no GPU", "skipped"),
        ("this user may not mount a tmpfs: must be superuser", "skipped"),
    ],
)
def test_continuous_integration_skips_only_what_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, reason: str, outcome: str
) -> None:
    monkeypatch.setenv("CI", "true")
    report = skipped(reason)
    fail_instead_of_skipping(report)
    assert report.outcome == outcome
    assert reason in str(report.longrepr)
    if outcome == "failed":
        assert "test_some.py::test_some is skipped in continuous integration" in report.longrepr


def test_elsewhere_any_test_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    report = skipped("could not import 'optuna'")
    fail_instead_of_skipping(report)
    assert report.outcome == "skipped"


def test_an_expected_failure_is_not_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    report = skipped("xfail")
    report.wasxfail = "not yet"
    fail_instead_of_skipping(report)
    assert report.outcome == "skipped"
