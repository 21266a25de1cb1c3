"""Predictions tables with a known signal."""

from collections.abc import Mapping

import numpy as np
import pandas as pd


def predictions(
    *, strength: float, seed: int = 0, dates: int = 120, a_day: int = 80
) -> pd.DataFrame:
    """Build rows of a model whose forecast knows part of the outcome, rounded to give ties."""
    rng = np.random.default_rng(seed)
    rows = dates * a_day
    signal = rng.normal(size=rows)
    outcome = np.round(strength * signal + rng.normal(size=rows), 1)
    target = (pd.Series(outcome).rank().to_numpy() - 1) / (rows - 1)
    score = 0.5 + 0.29 * strength * signal
    date = np.datetime64("2024-01-01", "s") + np.repeat(np.arange(dates), a_day) * 86400
    return pd.DataFrame(
        {
            "time": pd.date_range("2024-01-01", periods=rows, freq="min", tz="UTC"),
            "contract": "ESH24",
            "trading_date": date,
            "close": 5000.0,
            "fold": 0,
            "score": score,
            "target": target,
            "outcome": 1e-4 * outcome,
        }
    )


def with_models(table: pd.DataFrame, scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Build the table of a run: rows of the net and of its baselines."""
    models = {"net": table["score"], "constant": np.full(len(table), 0.5), **scores}
    return pd.concat([table.assign(model=k, score=v) for k, v in models.items()], ignore_index=True)
