import json

import pytest
from omegaconf import DictConfig, OmegaConf

from robust_fin.ledger.trials import (
    _UNSEEN,
    LedgerTrial,
    Look,
    as_line,
    config_hash,
    from_line,
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
)


def hash_of(settings: DictConfig) -> str:
    return config_hash(plain_values(settings))


@pytest.mark.parametrize("entry", [TRIAL, LOOK])
def test_a_line_is_read_as_it_was_written(entry: LedgerTrial | Look) -> None:
    line = as_line(entry)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert json.loads(line)["kind"] == entry.KIND
    assert from_line(line) == entry


@pytest.mark.parametrize(
    "line",
    [
        as_line(TRIAL)[:40],
        "",
        "7",
        '{"kind": "wish"}',
        '{"kind": "trial"}',
        as_line(TRIAL).replace('"split": {', '"split": 0, "more": {'),
        as_line(LOOK).replace('"scored": {', '"scored": null, "x": {'),
    ],
)
def test_what_is_no_whole_entry_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"no |Expecting|Unterminated"):
        from_line(line)


@pytest.fixture(scope="module")
def settings() -> DictConfig:
    return config()


def changed(settings: DictConfig, key: str, value: object) -> DictConfig:
    found = settings.copy()
    assert OmegaConf.select(found, key, default="absent") not in ("absent", value)
    OmegaConf.update(found, key, value)
    return found


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
def test_how_and_where_a_run_is_made_is_not_in_the_hash(
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
def test_what_the_result_depends_on_is_in_the_hash(
    settings: DictConfig, key: str, value: object
) -> None:
    assert hash_of(changed(settings, key, value)) != hash_of(settings)


def test_another_callback_is_in_the_hash(settings: DictConfig) -> None:
    assert hash_of(config("callbacks=early_stopping")) != hash_of(settings)


def test_every_name_left_out_is_one_of_the_config(settings: DictConfig) -> None:
    for key in _UNSEEN - {"callbacks.lr"}:  # of runs from when Lightning drew the learning rate
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
def test_members_with_settings_of_their_own_are_so_many_tries(
    words: tuple[str, ...], count: int
) -> None:
    assert settings_tried(plain_values(config(*words))) == count
