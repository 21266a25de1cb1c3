"""Figures of the test span, model by model, from the predictions table."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from robust_fin.metrics import span_metrics


def model_metrics(
    predictions: pd.DataFrame, *, train_median: Sequence[float], train_mean: Sequence[float]
) -> dict[str, dict[str, float]]:
    """`robust_fin.metrics.span_metrics` of every model in the table, on its labelled rows.

    Args:
        predictions: with fold, model, score, target, outcome.
        train_median: of the target over the training rows of each fold, in rank units.
        train_mean: likewise.
    """
    labelled = predictions[predictions["outcome"].notna()]
    median, mean = np.array(train_median), np.array(train_mean)
    return {
        str(model): span_metrics(
            rows["score"].to_numpy(dtype="float64"),
            rows["target"].to_numpy(),
            rows["outcome"].to_numpy(),
            train_median=median[rows["fold"].to_numpy()],
            train_mean=mean[rows["fold"].to_numpy()],
        )
        for model, rows in labelled.groupby("model", sort=False)
    }
