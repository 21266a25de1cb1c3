import json
import logging
import math
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robust_fin.errors import ConfigError
from robust_fin.evaluation.multiple_testing import SharpeMoments, deflated_sharpe
from robust_fin.ledger.trials import LedgerTrial, Look, Trials, append
from tests.ledger.test_entries import LOOK, TRIAL


def scored(trial: LedgerTrial, **figures: float | None) -> LedgerTrial:
    return replace(trial, test={**trial.test, **figures})


def ledger(path: Path, *entries: LedgerTrial | Look) -> Trials:
    for one in entries:
        append(path, one)
    return Trials.read(path)


def test_lines_are_read_back_in_their_order(tmp_path: Path) -> None:
    other = replace(TRIAL, run="top5/b", seed=1)
    found = ledger(tmp_path / "new" / "trials.jsonl", TRIAL, LOOK, other)
    assert found.trials == (TRIAL, other)
    assert found.looks == (LOOK,)
    assert found.damaged == ()


def test_a_ledger_that_is_not_there_is_empty(tmp_path: Path) -> None:
    found = Trials.read(tmp_path / "trials.jsonl")
    assert (found.trials, found.looks, found.damaged) == ((), (), ())


def _append_many(path: str, number: int) -> None:
    for count in range(40):
        append(Path(path), replace(TRIAL, seed=1000 * number + count, data="x" * 5000))


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_many_processes_at_once_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    context = multiprocessing.get_context("fork")
    every = [context.Process(target=_append_many, args=(str(path), k)) for k in range(5)]
    for one in every:
        one.start()
    for one in every:
        one.join(60)
        assert one.exitcode == 0
    found = Trials.read(path)
    assert found.damaged == ()
    expected = {1000 * number + count for number in range(5) for count in range(40)}
    assert {one.seed for one in found.trials} == expected
    assert len(found.trials) == 200


def test_a_torn_line_is_said_and_swallows_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trials.jsonl"
    ledger(path, TRIAL, replace(TRIAL, seed=1))
    path.write_bytes(path.read_bytes()[:-30])  # the process was killed as it wrote
    with caplog.at_level(logging.WARNING):
        torn = Trials.read(path)
    assert (torn.trials, torn.damaged) == ((TRIAL,), (2,))
    assert f"line 2 of {path} cannot be counted" in caplog.text
    third = replace(TRIAL, seed=2)
    found = ledger(path, third)
    assert (found.trials, found.damaged) == ((TRIAL, third), (2,))
    assert found.same_data("another").damaged == (2,)


def test_only_trials_on_the_same_bars_count(tmp_path: Path) -> None:
    other = replace(TRIAL, data_sha256="6" * 64)
    found = ledger(tmp_path / "trials.jsonl", TRIAL, other, LOOK).same_data("6" * 64)
    assert (found.trials, found.looks) == ((other,), ())


def test_a_repeat_is_no_trial_and_another_result_is(tmp_path: Path) -> None:
    resumed = replace(TRIAL, time="2026-02-01T10:00:00Z")
    elsewhere = replace(scored(TRIAL, skill=0.001 + 1e-9), run="top5/b")
    changed_code = replace(scored(TRIAL, rank_ic=0.05), run="top5/c")
    other_seed = replace(TRIAL, config="f" * 16, run="top5/a")
    entries = (TRIAL, resumed, elsewhere, changed_code, other_seed)
    found = ledger(tmp_path / "trials.jsonl", *entries)
    assert found.distinct() == (TRIAL, changed_code, other_seed)
    control = replace(TRIAL, config="c" * 16, labels="swapped")
    assert ledger(tmp_path / "control.jsonl", TRIAL, control).distinct() == (TRIAL,)
    flat = scored(replace(TRIAL, config="e" * 16), rank_ic=None)
    assert ledger(tmp_path / "flat.jsonl", flat, flat).distinct() == (flat,)


def test_a_claim_is_deflated_by_all_trials(tmp_path: Path) -> None:
    daily = np.random.default_rng(0).normal(0.02, 0.1, size=100)
    ratios = [0.25, 0.1, -0.05, None]
    entries = [scored(replace(TRIAL, config=f"{k}"), icir=one) for k, one in enumerate(ratios)]
    found = ledger(tmp_path / "trials.jsonl", *entries).deflated(daily)
    expected = deflated_sharpe(
        SharpeMoments.from_daily(daily), trials=4, spread=float(np.std([0.25, 0.1, -0.05], ddof=1))
    )
    assert found == expected
    assert 0.001 < found.probability < 0.999
    alone = ledger(tmp_path / "one.jsonl", TRIAL).deflated(daily)
    assert (alone.trials, alone.expected_max) == (1, 0)
    assert alone.probability > found.probability
    too_few = ledger(tmp_path / "two.jsonl", entries[0], entries[3]).deflated(daily)
    assert math.isnan(too_few.probability)


def test_a_swept_population_counts_as_often_as_it_has_settings(tmp_path: Path) -> None:
    daily = np.random.default_rng(0).normal(0.02, 0.1, size=100)
    swept = scored(replace(TRIAL, config="b", members=12, settings=12), icir=0.1)
    found = ledger(tmp_path / "trials.jsonl", TRIAL, swept, swept)
    assert (len(found.distinct()), found.count()) == (2, 13)
    spread = float(np.std([0.2, 0.1], ddof=1))
    assert found.deflated(daily) == deflated_sharpe(
        SharpeMoments.from_daily(daily), trials=13, spread=spread
    )
    old = (tmp_path / "trials.jsonl").read_text().replace(', "settings": 12', "")
    (tmp_path / "old.jsonl").write_text(old)
    assert Trials.read(tmp_path / "old.jsonl").count() == 2


def test_a_ledger_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written; this run is not counted.*ledger="):
        append(tmp_path, TRIAL)
    with pytest.raises(ConfigError, match=f"the trial ledger {tmp_path} cannot be read"):
        Trials.read(tmp_path)


def test_no_figure_is_written_that_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        append(tmp_path / "trials.jsonl", scored(TRIAL, icir=math.nan))
    append(tmp_path / "trials.jsonl", scored(TRIAL, icir=None))
    assert json.loads((tmp_path / "trials.jsonl").read_text())["test"]["icir"] is None
