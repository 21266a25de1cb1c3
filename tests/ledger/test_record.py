import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import purgedcv
import pytest
from scipy.stats import spearmanr

from robust_fin import evaluate
from robust_fin.bundle.config import read_config
from robust_fin.bundle.folder import write_config
from robust_fin.errors import ConfigError
from robust_fin.evaluation.multiple_testing import robust_std
from robust_fin.ledger.record import find_ledger, record_trial, summarize_trials, void_trial
from robust_fin.ledger.trials import Trials
from robust_fin.runs.schema import with_absolute_ledger
from tests.ledger.runs import SHA256, finished_run, usual_settings


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "trials.jsonl"


def daily_ic(run: Path) -> np.ndarray:
    """Rank IC of each date, by scipy."""
    table = pd.read_parquet(run / "predictions.parquet").query("model == 'net'")
    dates = table.groupby("trading_date")
    return np.array([spearmanr(day["score"], day["outcome"]).statistic for _, day in dates])


def test_recorded_trial_describes_the_run(tmp_path: Path, ledger: Path) -> None:
    run = finished_run(tmp_path / "top5" / "a", lockbox=0.1, ledger=ledger, seed=3)
    record_trial(run)
    (one,) = Trials.read(ledger).trials
    assert (one.name, one.run, one.seed, one.members) == ("train", "top5/a", 3, 1)
    assert (one.data_sha256, one.data) == (SHA256, "es.parquet")
    assert (one.split["scheme"], one.split["lockbox"]) == ("Holdout", 0.1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one.time)
    metrics, daily = json.loads((run / "metrics.json").read_text()), daily_ic(run)
    assert one.test["rank_ic"] == metrics["test/rank_ic"]
    assert one.val == {"skill": None, "rank_ic": None}
    assert one.test["dates"] == 60
    assert one.icir == pytest.approx(daily.mean() / daily.std(ddof=1), rel=1e-9)


def test_deflated_probability_agrees_with_purgedcv(tmp_path: Path, ledger: Path) -> None:
    words = ""
    for seed, strength in enumerate((0.01, -0.03, 0.002, 0.04)):
        run = finished_run(tmp_path / str(seed), ledger=ledger, seed=seed, strength=strength)
        words = record_trial(run)
    runs = [daily_ic(tmp_path / str(seed)) for seed in range(4)]
    ratios = [daily.mean() / daily.std(ddof=1) for daily in runs]
    expected = purgedcv.deflated_sharpe_ratio_full(runs[3], 4, robust_std(ratios) ** 2)
    assert 0.05 < expected.dsr < 0.95
    found = re.fullmatch(
        r"Trial 4 of 4 on these bars\. The ICIR of (\S+) \(daily rank IC, 60 dates\) has a "
        r"deflated probability of (\S+): this is the probability that the true ICIR is above "
        r"(\S+), which the best of 4 trials without skill is expected to reach by chance\.",
        words,
    )
    assert found is not None, words
    shown = [float(figure) for figure in found.groups()]
    assert shown == pytest.approx([ratios[3], expected.dsr, expected.sr_star], abs=0.01)
    assert summarize_trials(tmp_path / "3") == words
    assert summarize_trials(tmp_path / "0").startswith("Trial 1 of 4 on these bars.")


def test_swept_population_takes_a_trial_number_per_setting(tmp_path: Path, ledger: Path) -> None:
    record_trial(finished_run(tmp_path / "a", ledger=ledger))
    swept = finished_run(tmp_path / "b", ledger=ledger, strength=0.03)
    settings = read_config(swept)
    settings.population.members, settings.population.lr = 3, [0.001, 0.003, 0.01]
    write_config(swept, settings)
    assert record_trial(swept).startswith("Trials 2 to 4 of 4 on these bars.")
    after = record_trial(finished_run(tmp_path / "c", ledger=ledger, seed=1))
    assert after.startswith("Trial 5 of 5 on these bars.")
    assert "which the best of 5 trials without skill is expected to reach by chance" in after


def test_first_trial_is_not_deflated(tmp_path: Path, ledger: Path) -> None:
    finished_run(tmp_path / "other", ledger=ledger, sha256="6" * 64, contract="NQH24")
    record_trial(tmp_path / "other")
    words = record_trial(finished_run(tmp_path / "a", ledger=ledger))
    assert words.startswith("Trial 1 on these bars. The ICIR of ")
    assert words.endswith("; nothing to deflate.")


def test_another_file_with_the_same_test_dates_is_another_trial(
    tmp_path: Path, ledger: Path
) -> None:
    record_trial(finished_run(tmp_path / "a", ledger=ledger))
    words = record_trial(finished_run(tmp_path / "b", ledger=ledger, sha256="6" * 64, dates=61))
    assert words.startswith("Trial 2 of 2 on these bars.")
    assert [trial.tested for trial in Trials.read(ledger).trials] == [
        {"products": ["ES"], "first": "2024-01-01", "last": last}
        for last in ("2024-02-29", "2024-03-01")
    ]


def test_voided_trial_is_not_counted_and_its_reason_is_shown(tmp_path: Path, ledger: Path) -> None:
    first, second = (
        finished_run(tmp_path / name, ledger=ledger, seed=seed) for seed, name in enumerate("ab")
    )
    with pytest.raises(ConfigError, match="nothing to void"):
        void_trial(first, reason="wrong zone")
    record_trial(first)
    record_trial(second)
    with pytest.raises(ConfigError, match="gives no reason"):
        void_trial(first, reason=" ")
    shown = "Voided, not counted: a (wrong zone)."
    assert void_trial(first, reason="wrong zone") == (
        f"This run does not count as a trial. {shown}"
    )
    assert summarize_trials(second).startswith("Trial 1 on these bars.")
    assert summarize_trials(second).endswith(shown)
    assert record_trial(first).startswith("Trial 2 of 2 on these bars.")  # trained again


def test_run_recorded_twice_counts_once(tmp_path: Path, ledger: Path) -> None:
    run = finished_run(tmp_path / "a", ledger=ledger)
    assert record_trial(run) == record_trial(run)
    assert len(ledger.read_text().splitlines()) == 2


def test_control_is_recorded_but_does_not_count(tmp_path: Path, ledger: Path) -> None:
    run = finished_run(tmp_path / "a", ledger=ledger, labels="swapped")
    expected = "This run is a control: it is in the trial ledger but does not count as a trial."
    assert record_trial(run) == expected
    assert [trial.labels for trial in Trials.read(ledger).trials] == ["swapped"]
    words = record_trial(finished_run(tmp_path / "b", ledger=ledger))
    assert words.startswith("Trial 1 on these bars.")


def test_too_few_dates_are_reported(tmp_path: Path, ledger: Path) -> None:
    words = record_trial(finished_run(tmp_path / "a", ledger=ledger, dates=3))
    assert words.endswith("The 3 test dates with a rank IC are too few to judge an ICIR.")


def test_missing_ledger_and_damaged_lines_are_reported(tmp_path: Path, ledger: Path) -> None:
    run = finished_run(tmp_path / "a", ledger=ledger)
    assert summarize_trials(run) == (
        f"No trial ledger at {ledger}: the number of earlier trials on these bars is unknown, and "
        "nothing is deflated."
    )
    record_trial(finished_run(tmp_path / "b", ledger=ledger, seed=1))
    assert "is not in the trial ledger" in summarize_trials(run)
    with ledger.open("a") as file:
        file.write('{"kind": "trial", "ti')
    assert record_trial(run).endswith(f"Line 2 of {ledger} is damaged and not counted.")


def test_run_without_a_ledger_is_not_deflated(tmp_path: Path, ledger: Path) -> None:
    run = finished_run(tmp_path / "a", ledger=ledger)
    path = run / "bundle" / "config.yaml"
    lines = path.read_text().splitlines(True)
    path.write_text("".join(line for line in lines if not line.startswith("ledger:")))
    assert record_trial(run).startswith("No trial ledger: the number of earlier trials")
    assert not ledger.exists()


def test_relative_ledger_is_resolved_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = usual_settings().copy()
    settings.ledger = "outputs/trials.jsonl"
    found = with_absolute_ledger(settings)
    assert found.ledger == str(tmp_path / "outputs" / "trials.jsonl")
    monkeypatch.chdir("/")
    assert with_absolute_ledger(found) == found


def test_new_ledger_is_not_mistaken_for_the_ledger_above_the_run(tmp_path: Path) -> None:
    record_trial(finished_run(tmp_path / "a", ledger=tmp_path / "trials.jsonl"))
    other = tmp_path / "other" / "trials.jsonl"
    words = record_trial(finished_run(tmp_path / "b", ledger=other, seed=1))
    assert words.startswith("Trial 1 on these bars.")
    assert len(Trials.read(other).trials) == 1


def test_moved_project_keeps_its_ledger(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "old" / "top5" / "a", ledger=tmp_path / "old" / "trials.jsonl")
    before = record_trial(run)
    (tmp_path / "old").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "top5" / "a"
    assert find_ledger(moved) == tmp_path / "moved" / "trials.jsonl"
    assert summarize_trials(moved) == before


def test_comparing_runs_reports_pbo_and_spa(
    tmp_path: Path, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = finished_run(tmp_path / "good", ledger=ledger, strength=0.2)
    poor = finished_run(tmp_path / "poor", ledger=ledger, strength=-0.05, seed=1)
    assert evaluate.main([f"run=[{good},{poor}]"]) == 0
    text = capsys.readouterr().out
    assert "Picking the best of these 2 by ICIR: probability of backtest overfitting 0.00" in text
    assert "the share of 924 ways to halve 60 dates" in text
    assert f"The best of these 2 by skill, {good}, is better than the constant: SPA test" in text
    assert "the constant p < 0.001 (lower 0.000, upper 0.000)" in text
    other = finished_run(tmp_path / "other", ledger=ledger, sha256="6" * 64)
    assert evaluate.main([f"run=[{good},{other}]"]) == 0
    assert "No PBO and no SPA: these runs read different bars." in capsys.readouterr().out


def test_evaluate_reports_the_trials_without_adding_to_them(
    tmp_path: Path, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        record_trial(finished_run(tmp_path / str(seed), ledger=ledger, seed=seed))
    lines = ledger.read_text()
    assert evaluate.main([f"run={tmp_path / '1'}"]) == 0
    assert "Trial 2 of 2 on these bars. The ICIR of" in capsys.readouterr().out
    assert ledger.read_text() == lines  # to look at it is no trial
