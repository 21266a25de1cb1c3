import json
import logging
import math
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from robust_fin.errors import ConfigError
from robust_fin.evaluation.multiple_testing import SharpeMoments, deflated_sharpe, robust_std
from robust_fin.ledger.trials import (
    NOT_HASHED,
    LedgerTrial,
    Look,
    Trials,
    Void,
    append_entry,
    config_hash,
    format_line,
    parse_line,
    settings_tried,
)
from robust_fin.runs.schema import plain_values
from tests.bars import config

TRIAL = LedgerTrial(
    time="2026-01-31T10:00:00Z",
    name="top5",
    run="top5/a",
    config="0123456789abcdef",
    data_sha256="5" * 64,
    data="es.parquet",
    split={"scheme": "Holdout", "lockbox": 0.0},
    members=1,
    seed=0,
    labels="kept",
    val={"skill": None, "rank_ic": None},
    test={"skill": 0.001, "rank_ic": 0.04, "icir": 0.2, "dates": 170, "skew": 0.0, "kurtosis": 3.0},
    commit=None,
)
LOOK = Look(
    time="2026-01-31T11:00:00Z",
    name="top5",
    run="top5/a",
    config="0123456789abcdef",
    data_sha256="5" * 64,
    lockbox=0.1,
    rows=1000,
    scored={"skill": 0.001, "rank_ic": 0.03},
    commit="abc",
    tested={"products": ["ES"], "first": "2024-01-02", "last": "2024-03-29"},
)
VOID = Void(time="2026-02-01T10:00:00Z", run="top5/a", reason="wrong time zone")


def hash_of(settings: DictConfig) -> str:
    return config_hash(plain_values(settings))


@pytest.mark.parametrize("entry", [TRIAL, LOOK, VOID])
def test_line_is_parsed_to_the_same_entry(entry: LedgerTrial | Look | Void) -> None:
    line = format_line(entry)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert json.loads(line)["kind"] == entry.KIND
    assert parse_line(line) == entry


@pytest.mark.parametrize(
    "line",
    [
        format_line(TRIAL)[:40],
        "",
        "7",
        '{"kind": "wish"}',
        '{"kind": "trial"}',
        format_line(TRIAL).replace('"split": {', '"split": 0, "more": {'),
        format_line(LOOK).replace('"scored": {', '"scored": null, "x": {'),
    ],
)
def test_invalid_line_is_rejected(line: str) -> None:
    with pytest.raises(ValueError, match=r"not a JSON|kind|incomplete|damaged|Expecti|Unterm"):
        parse_line(line)


@pytest.fixture(scope="module")
def settings() -> DictConfig:
    return config()


def changed(settings: DictConfig, key: str, value: object) -> DictConfig:
    copy = settings.copy()
    assert OmegaConf.select(copy, key, default="absent") not in ("absent", value)
    OmegaConf.update(copy, key, value)
    return copy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "other"),
        ("ledger", "/elsewhere/trials.jsonl"),
        ("threads", 2),
        ("score_batch_size", 7),
        ("hardware.accelerator", "gpu"),
        ("hardware.check", False),
        ("engine.name", "compiled"),
        ("trainer.enable_progress_bar", False),
        ("trainer.log_every_n_steps", 1),
        ("cache.folder", None),
        ("source.path", "es.parquet"),
        ("source.block_rows", 1000),
        ("checkpoint.every_n_steps", 7),
        ("population.workers", 2),
        ("predictions.members", 1),
        ("callbacks.progress.refresh_rate", 1),
        ("baselines.lightgbm", "full"),
        ("instrument.tick", 0.5),
        ("report.pictures", False),
        ("debug.traceback", True),
    ],
)
def test_settings_without_effect_on_the_result_are_not_hashed(
    settings: DictConfig, key: str, value: object
) -> None:
    assert hash_of(changed(settings, key, value)) == hash_of(settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("model.hidden", [16]),
        ("optimizer.lr", 0.5),
        ("trainer.max_epochs", 3),
        ("trainer.devices", 2),
        ("trainer.precision", "bf16-mixed"),
        ("batch_size", 64),
        ("features.names", ["vwap"]),
        ("split.test_fraction", 0.3),
        ("split.lockbox", 0.1),
        ("loss.delta", 1.0),
        ("source.bar", "5min"),
        ("source.fraction", 0.5),
        ("population.members", 3),
        ("checkpoint.monitor", "val/rank_ic"),
        ("stability.on_nonfinite", "rollback"),
        ("debug.labels", "shuffled"),
    ],
)
def test_settings_with_effect_on_the_result_are_hashed(
    settings: DictConfig, key: str, value: object
) -> None:
    assert hash_of(changed(settings, key, value)) != hash_of(settings)


def test_callbacks_are_hashed(settings: DictConfig) -> None:
    assert hash_of(config("callbacks=early_stopping")) != hash_of(settings)


def test_every_key_that_is_not_hashed_exists_in_the_config(settings: DictConfig) -> None:
    for key in NOT_HASHED - {"callbacks.lr"}:  # of older runs
        assert OmegaConf.select(settings, key, default="absent") != "absent", key


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ((), 1),
        (("population.members=256",), 1),
        (("population.members=3", "population.seeds=[4,5,6]"), 3),
        (("population.members=4", "population.lr=[0.1,0.1,0.2,0.2]"), 2),
        (
            ("population.members=4", "population.lr=[0.1,0.1,0.2,0.2]",
             "population.seeds=[0,1,0,1]", "population.dropout=[0,0,0,0]"),
            4,
        ),
    ],
)  # fmt: skip
def test_members_with_different_settings_count_as_several(
    words: tuple[str, ...], count: int
) -> None:
    assert settings_tried(plain_values(config(*words))) == count


def scored(trial: LedgerTrial, **figures: float | None) -> LedgerTrial:
    return replace(trial, test={**trial.test, **figures})


def ledger(path: Path, *entries: LedgerTrial | Look | Void) -> Trials:
    for entry in entries:
        append_entry(path, entry)
    return Trials.read(path)


def test_entries_are_read_in_the_order_of_the_lines(tmp_path: Path) -> None:
    other = replace(TRIAL, run="top5/b", seed=1)
    result = ledger(tmp_path / "new" / "trials.jsonl", TRIAL, LOOK, other)
    assert result.trials == (TRIAL, other)
    assert result.looks == (LOOK,)
    assert result.damaged == ()


def test_missing_ledger_is_empty(tmp_path: Path) -> None:
    result = Trials.read(tmp_path / "trials.jsonl")
    assert (result.trials, result.looks, result.damaged) == ((), (), ())


def _append_many(path: str, number: int) -> None:
    for count in range(40):
        append_entry(Path(path), replace(TRIAL, seed=1000 * number + count, data="x" * 5000))


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_concurrent_processes_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(str(path), k)) for k in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    result = Trials.read(path)
    assert result.damaged == ()
    expected = {1000 * number + count for number in range(5) for count in range(40)}
    assert {trial.seed for trial in result.trials} == expected
    assert len(result.trials) == 200


def test_truncated_line_is_reported_and_the_next_entry_is_kept(
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
    result = ledger(path, third)
    assert (result.trials, result.damaged) == ((TRIAL, third), (2,))
    assert result.same_rows(replace(TRIAL, data_sha256="another")).damaged == (2,)


def rows_of(product: str, first: str, last: str, *, sha256: str) -> LedgerTrial:
    rows = {"products": [product], "first": first, "last": last}
    return replace(TRIAL, run=sha256, data_sha256=sha256, tested=rows)


def test_trials_are_matched_by_product_and_overlapping_dates(tmp_path: Path) -> None:
    own = rows_of("ES", "2024-01-02", "2024-03-29", sha256="own")
    later = rows_of("ES", "2024-03-29", "2024-06-28", sha256="one more bar")
    after = rows_of("ES", "2024-04-01", "2024-06-28", sha256="other dates")
    other = rows_of("NQ", "2024-01-02", "2024-03-29", sha256="other product")
    look = replace(LOOK, data_sha256="restamped")
    result = ledger(tmp_path / "trials.jsonl", own, later, after, other, TRIAL, look)
    assert result.same_rows(own).trials == (own, later)
    assert result.same_rows(own).looks == (look,)
    assert result.same_rows(after).trials == (later, after)
    assert result.same_rows(TRIAL).trials == (TRIAL,)  # an older line says no more than its file


def test_voided_trial_does_not_count_until_its_run_is_trained_again(tmp_path: Path) -> None:
    other = replace(TRIAL, config="b" * 16, run="top5/b")
    path = tmp_path / "trials.jsonl"
    result = ledger(path, TRIAL, other, VOID)
    assert (result.trials, result.voided) == ((other,), ((TRIAL, VOID),))
    assert result.count() == 1
    assert result.same_rows(other).voided == ((TRIAL, VOID),)
    again = ledger(path, replace(TRIAL, seed=5))
    assert again.trials == (other, replace(TRIAL, seed=5))
    assert again.voided == ((TRIAL, VOID),)


def test_repeated_run_is_not_another_trial_but_another_result_is(tmp_path: Path) -> None:
    resumed = replace(TRIAL, time="2026-02-01T10:00:00Z")
    elsewhere = replace(scored(TRIAL, skill=0.001 + 1e-9), run="top5/b")
    changed_code = replace(scored(TRIAL, rank_ic=0.05), run="top5/c")
    other_seed = replace(TRIAL, config="f" * 16, run="top5/a")
    entries = (TRIAL, resumed, elsewhere, changed_code, other_seed)
    result = ledger(tmp_path / "trials.jsonl", *entries)
    assert result.distinct() == (TRIAL, changed_code, other_seed)
    control = replace(TRIAL, config="c" * 16, labels="swapped")
    assert ledger(tmp_path / "control.jsonl", TRIAL, control).distinct() == (TRIAL,)
    flat = scored(replace(TRIAL, config="e" * 16), rank_ic=None)
    assert ledger(tmp_path / "flat.jsonl", flat, flat).distinct() == (flat,)


def test_icir_is_deflated_by_all_trials(tmp_path: Path) -> None:
    daily = np.random.default_rng(0).normal(0.02, 0.1, size=100)
    ratios = [0.25, 0.1, -0.05, None]
    entries = [scored(replace(TRIAL, config=f"{k}"), icir=ratio) for k, ratio in enumerate(ratios)]
    result = ledger(tmp_path / "trials.jsonl", *entries).deflated(daily)
    expected = deflated_sharpe(
        SharpeMoments.from_daily(daily), trials=4, spread=robust_std([0.25, 0.1, -0.05])
    )
    assert result == expected
    assert 0.001 < result.probability < 0.999
    alone = ledger(tmp_path / "one.jsonl", TRIAL).deflated(daily)
    assert (alone.trials, alone.expected_max) == (1, 0)
    assert alone.probability > result.probability
    too_few = ledger(tmp_path / "two.jsonl", entries[0], entries[3]).deflated(daily)
    assert math.isnan(too_few.probability)


def test_swept_population_counts_each_of_its_settings(tmp_path: Path) -> None:
    daily = np.random.default_rng(0).normal(0.02, 0.1, size=100)
    swept = scored(replace(TRIAL, config="b", members=12, settings=12), icir=0.1)
    result = ledger(tmp_path / "trials.jsonl", TRIAL, swept, swept)
    assert (len(result.distinct()), result.count()) == (2, 13)
    spread = robust_std([0.2, 0.1])
    assert result.deflated(daily) == deflated_sharpe(
        SharpeMoments.from_daily(daily), trials=13, spread=spread
    )
    old = (tmp_path / "trials.jsonl").read_text().replace(', "settings": 12', "")
    (tmp_path / "old.jsonl").write_text(old)
    assert Trials.read(tmp_path / "old.jsonl").count() == 2


def test_unusable_ledger_raises_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written; this run is not counted.*ledger="):
        append_entry(tmp_path, TRIAL)
    with pytest.raises(ConfigError, match=f"the trial ledger {tmp_path} cannot be read"):
        Trials.read(tmp_path)


def test_nan_is_rejected_and_null_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        append_entry(tmp_path / "trials.jsonl", scored(TRIAL, icir=math.nan))
    append_entry(tmp_path / "trials.jsonl", scored(TRIAL, icir=None))
    assert json.loads((tmp_path / "trials.jsonl").read_text())["test"]["icir"] is None
