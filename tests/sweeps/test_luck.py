import numpy as np
import pytest
from scipy.stats import norm

from robust_fin.sweeps.sweep_summary import BestOf

SKILLS = [0.001, 0.002, 0.003, 0.004]


def test_the_best_of_four_by_hand() -> None:
    found = BestOf.of([*SKILLS, float("nan")])
    assert (found.trials, found.best) == (4, 0.004)
    assert found.mean == pytest.approx(0.0025)
    assert found.spread == pytest.approx(np.sqrt(5 / 3) * 0.001)
    # 0.57722 is Euler's constant; the quantiles are those of 1 - 1/4 and 1 - 1/(4 e)
    expected = (1 - 0.5772156649) * 0.6744897502 + 0.5772156649 * norm.ppf(1 - 0.0919698603)
    assert found.luck(4) == pytest.approx(0.0025 + expected * found.spread, rel=1e-9)
    assert found.luck(1) == found.mean


@pytest.mark.parametrize("trials", [3, 12, 60])
def test_luck_is_the_mean_of_the_best_of_many_equal_trials(trials: int) -> None:
    draw = np.random.default_rng(0).normal(0.01, 0.002, (20_000, trials))
    found = BestOf(trials=trials, best=0.0, mean=0.01, spread=0.002)
    assert found.luck(trials) == pytest.approx(draw.max(axis=1).mean(), abs=0.002 * 0.05)


def test_the_words_say_both_counts_and_what_they_assume() -> None:
    first, ledger, assumed = BestOf.of(SKILLS).words(counted=31)
    assert first == (
        "val/skill of the best of 4 finished trials is +0.4000 %. Were all 4 equally good, the "
        "best would be expected at +0.3858 % by luck alone: their mean, +0.2500 %, and 1.05 times "
        "their spread of 0.1291 %. It is 0.0142 % beyond that."
    )
    assert ledger == ("After the 31 that the trial ledger counts on these bars: +0.5194 % by luck.")
    assert assumed.startswith("This takes the trials for independent, their val/skill for normal")


def test_a_best_that_luck_alone_would_have_exceeded() -> None:
    first, ledger, _ = BestOf.of([0.001, 0.002, 0.002, 0.002]).words(counted=None)
    assert first.endswith("% short of that.")
    assert ledger.startswith("No trial ledger counts these trials")


def test_one_trial_was_picked_from_nothing() -> None:
    said = BestOf.of([0.001]).words(counted=3)
    assert said[0].startswith("val/skill of the one finished trial is +0.1000 %; it was picked fr")
    assert said[1:] == ["The trial ledger counts 3 on these bars."]
