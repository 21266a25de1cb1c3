from types import ModuleType

import pytest

from tests.conftest import ROOT


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import judge

    return judge


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("dates", [5, 7, 20])
def test_noise_is_rarely_called_skill_or_order(judge: ModuleType, dates: int, short: bool) -> None:
    # two claims at 2.5 % each are 3 of 60; the benchmark counts 200 seeds
    assert judge.count_claims(dates=dates, short=short, seeds=60) <= 8


def test_a_signal_is_called_skill_on_as_many_dates(judge: ModuleType) -> None:
    from robust_fin.evaluation.significance import significance
    from robust_fin.evaluation.verdict import claims_skill

    table = judge.noise_table(0, dates=7, short=True)
    known = table.assign(score=0.5 + 0.3 * (table["target"] - 0.5))
    assert claims_skill(significance(known, trivial=0.5))
