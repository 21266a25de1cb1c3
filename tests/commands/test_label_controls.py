"""Controls: training on shuffled or swapped labels shows in the test metrics."""

from pathlib import Path

import pytest

from tests.small_runs import read_metrics, run_training


@pytest.fixture(scope="module")
def honest(smoke_run: Path) -> dict[str, float]:
    return read_metrics(smoke_run)


def test_shuffled_labels_leave_no_skill(
    tmp_path: Path, honest: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_training(tmp_path / "r", "debug=shuffled_labels")
    said = capsys.readouterr().out
    assert "This is a control: the net was trained on shuffled labels." in said
    assert "No skill" in said
    assert honest["test/rank_ic"] > 0.15
    assert abs(found["test/rank_ic"]) < 0.08
    assert found["baseline/ridge/rank_ic"] == honest["baseline/ridge/rank_ic"]


def test_swapped_labels_reverse_the_order(tmp_path: Path, honest: dict[str, float]) -> None:
    found = run_training(tmp_path / "r", "debug=swapped_labels")
    assert found["test/rank_ic"] == pytest.approx(-honest["test/rank_ic"], abs=0.03)
    assert found["test/skill"] < 0
