"""Finished run folders, made without training."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from robust_fin.bundle.folder import write_config
from tests.bars import config

SHA256 = "5" * 64


@cache
def usual_settings() -> DictConfig:
    return config()


def predictions(*, strength: float, seed: int, dates: int, a_day: int = 60) -> pd.DataFrame:
    """Predictions of a net with the given correlation to the outcome, and of the constant."""
    rng = np.random.default_rng(seed)
    rows = dates * a_day
    outcome = np.random.default_rng(99).normal(size=rows)  # the same bars, whatever the net
    date = np.datetime64("2024-01-01", "s") + np.repeat(np.arange(dates), a_day) * 86400
    minute = np.tile(np.arange(a_day), dates) * np.timedelta64(1, "m")
    shared = pd.DataFrame(
        {
            "time": pd.DatetimeIndex((date + minute).astype("datetime64[ns]"), tz="UTC"),
            "contract": "ESH24",
            "trading_date": date,
            "close": 5000.0,
            "fold": np.int32(0),
            "score_std": np.float32(np.nan),
            "label_end": pd.DatetimeIndex((date + minute).astype("datetime64[ns]"), tz="UTC"),
            "target": (pd.Series(outcome).rank().to_numpy() - 1) / (rows - 1),
            "outcome": outcome,
        }
    )
    carried = strength * outcome + np.sqrt(1 - strength**2) * rng.normal(size=rows)
    score = 0.5 + 0.29 * abs(strength) * carried
    parts = [shared.assign(model=m, score=s) for m, s in (("net", score), ("constant", 0.5))]
    return pd.concat(parts, ignore_index=True)


def finished_run(
    folder: Path,
    *,
    ledger: Path,
    labels: str = "kept",
    lockbox: float = 0.0,
    strength: float = 0.05,
    seed: int = 0,
    dates: int = 60,
    sha256: str = SHA256,
    contract: str = "ESH24",
) -> Path:
    """Write a run folder whose test span has the given number of trading dates."""
    settings = usual_settings().copy()
    settings.ledger, settings.seed, settings.split.lockbox = str(ledger), seed, lockbox
    settings.debug.labels = labels
    write_config(folder, settings)
    facts = {"data_sha256": sha256, "data": "es.parquet", "commit": None}
    (folder / "bundle" / "provenance.json").write_text(json.dumps(facts))
    table = predictions(strength=strength, seed=seed, dates=dates).assign(contract=contract)
    table.to_parquet(folder / "predictions.parquet", index=False)
    net = table[table["model"] == "net"]
    ic = float(net["score"].corr(net["outcome"], method="spearman"))
    metrics = {"members": 1, "test/skill": ic**2, "test/rank_ic": ic}
    metrics |= {"val/skill": None, "val/rank_ic": None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder
