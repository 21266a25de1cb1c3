"""Examples whose features have a known relation to the outcome."""

from dataclasses import replace

import numpy as np
import pandas as pd

from robust_fin.data.examples import Examples

MINUTE = np.timedelta64(60, "s")


def make_examples(
    features: np.ndarray, outcome: np.ndarray, *, a_day: int = 50, horizon: int = 1
) -> Examples:
    """One row per minute from noon on, `a_day` rows per date; labels never cross a date."""
    rows = len(outcome)
    date = np.datetime64("2024-01-01", "s") + (np.arange(rows) // a_day) * np.timedelta64(1, "D")
    minute = np.arange(rows) % a_day
    time = (date + np.timedelta64(12, "h") + minute * MINUTE).astype("datetime64[ns]")
    known = minute < a_day - horizon
    return Examples(
        time=time,
        contract=pd.Categorical(["ESH24"] * rows),
        trading_date=date,
        features=features,
        last_return=np.zeros(rows),
        close=np.full(rows, 100.0),
        outcome=np.where(known, outcome, np.nan),
        label_end=np.where(known, time + (horizon + 1) * MINUTE, np.datetime64("NaT")),
        rows_in=rows,
        dropped={},
        unlabelled={},
        reports={},
    )


def make_examples_with_signal(
    rows: int = 12_000, *, seed: int = 0
) -> tuple[tuple[str, ...], Examples]:
    """Features noise, signal, copy (of the signal on another scale), weak and slow (noise)."""
    rng = np.random.default_rng(seed)
    signal, weak, noise, copied = rng.normal(size=(4, rows))
    slow = np.repeat(rng.normal(size=-(-rows // 50)), 50)[:rows]
    copy = -np.exp(signal + 0.4 * copied)
    outcome = 1e-4 * (0.3 * signal + 0.12 * weak + rng.standard_t(4, size=rows))
    features = np.stack([noise, signal, copy, weak, slow], axis=1)
    return ("noise", "signal", "copy", "weak", "slow"), make_examples(features, outcome)


def change_other_rows(examples: Examples, rows: np.ndarray, *, seed: int = 0) -> Examples:
    """Change the values of all other rows; times and missing labels stay."""
    rng = np.random.default_rng(seed)
    other = np.setdiff1d(np.arange(examples.time.size), rows)
    features, outcome = examples.features.copy(), examples.outcome.copy()
    features[other] = rng.normal(size=(other.size, features.shape[1])) * 100
    outcome[other] = np.where(np.isnan(outcome[other]), np.nan, rng.normal(size=other.size))
    return replace(examples, features=features, outcome=outcome)
