"""What a finished run is on disk; save, load, predict. No pickle in it."""

from robust_fin.bundle.daily_losses import DailyLosses
from robust_fin.bundle.folder import FOLDER as BUNDLE
from robust_fin.bundle.folder import (
    Bundle,
    finish_bundle,
    load_bundle,
    provenance,
    read_config,
    read_provenance,
    start_bundle,
    write_config,
)
from robust_fin.bundle.nets import SCORE_BLOCK, Nets, score_rows
from robust_fin.bundle.predictions import Forecast, MemberMean, mean_forecast, predictions_table
from robust_fin.bundle.span_forecast import SpanForecast, spread

__all__ = [
    "BUNDLE",
    "SCORE_BLOCK",
    "Bundle",
    "DailyLosses",
    "Forecast",
    "MemberMean",
    "Nets",
    "SpanForecast",
    "finish_bundle",
    "load_bundle",
    "mean_forecast",
    "predictions_table",
    "provenance",
    "read_config",
    "read_provenance",
    "score_rows",
    "spread",
    "start_bundle",
    "write_config",
]
