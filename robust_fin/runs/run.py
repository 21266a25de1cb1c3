"""A finished run: its metrics, predictions, verdict and files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from robust_fin.bundle.config import build, planted_rank_ic, read_config
from robust_fin.bundle.folder import Bundle, load_bundle, read_provenance
from robust_fin.errors import BundleError, ConfigError
from robust_fin.evaluation.breakdowns import Instrument
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.report.page import render_paragraphs, render_table
from robust_fin.evaluation.report.report import REPORT
from robust_fin.evaluation.significance import Judgement, judge
from robust_fin.evaluation.tables import PlainTable
from robust_fin.evaluation.verdict import format_interval, format_percent_interval, verdict
from robust_fin.runs.results import METRICS, PREDICTIONS, ROWS
from robust_fin.runs.schema import check_values
from robust_fin.runtime.records import read_metrics_file, read_rows_file, read_table
from robust_fin.runtime.terminal import command_hint

PREDICTION_KINDS = {  # column -> kinds of its numpy type
    **{"time": "M", "contract": "", "trading_date": "M", "close": "f", "fold": "i", "model": ""},
    **{"score": "f", "score_std": "f", "target": "f", "outcome": "f", "label_end": "M"},
}


@dataclass(frozen=True)
class Run:
    """A run folder; its files are read when they are asked for.

    Attributes:
        folder: the run folder.
        modules: your own modules that the run may use; a file is not trusted to name them.
    """

    folder: Path
    modules: tuple[str, ...] = ()

    @classmethod
    def open(cls, run: "Run | Path | str", *, modules: Sequence[str] = ()) -> "Run":
        """Return the run of a folder; a `Run` is returned as it is.

        Args:
            run: the folder.
            modules: your own modules that the run may use.

        Raises:
            BundleError: the folder is not a run folder.
        """
        if isinstance(run, Run):
            return run
        opened = cls(Path(run).expanduser(), tuple(modules))
        opened.config  # noqa: B018  # raises if the folder is not a run folder
        return opened

    @cached_property
    def config(self) -> DictConfig:
        """The resolved config.

        Raises:
            BundleError: the folder is not a run folder, or its config is damaged.
        """
        config = read_config(self.folder)
        try:
            check_values(config, verb="train")
        except ConfigError as error:
            raise BundleError(f"the config of {self.folder} is damaged: {error}") from error
        return config

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: name -> number, or None if it has no value.

        Raises:
            BundleError: the run has not finished.
        """
        self.config  # noqa: B018  # raises if the folder is not a run folder
        try:
            return read_metrics_file(self.folder / METRICS)
        except FileNotFoundError as error:
            raise BundleError(
                f"{self.folder} has no {METRICS}: the run has not finished. "
                f"{command_hint('train', 'resume', self.folder)} continues it"
            ) from error

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The predictions table of the test span: one row per (time, contract, fold, model)."""
        return read_table(
            self.folder / PREDICTIONS, PREDICTION_KINDS, finite=("score", "target", "outcome")
        )

    @cached_property
    def rows(self) -> dict[str, Any]:
        """The row ledger: how many input rows each span has, and why the others were dropped."""
        return read_rows_file(self.folder / ROWS)

    @cached_property
    def judgement(self) -> Judgement:
        """The metrics of the test span with confidence intervals, against every baseline."""
        return self.judged(build(self.config, "instrument", modules=self.modules))

    def judged(self, instrument: Instrument) -> Judgement:
        """Judge the test span with the costs of another instrument than that of the config."""
        planted = planted_rank_ic(self.config.source)
        accepted = read_provenance(self.folder).get("accepted", [])
        return judge(self.predictions, instrument=instrument, accepted=accepted, planted=planted)

    @property
    def verdict(self) -> str:
        """The judgement in one or two sentences."""
        return verdict(self.judgement)

    @property
    def figures(self) -> pd.DataFrame:
        """The judgement as a table: estimate, low and high of each metric and difference."""
        columns = ["estimate", "low", "high"]
        rows = {k: [getattr(v, name) for name in columns] for k, v in self._intervals().items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)

    @cached_property
    def bundle(self) -> Bundle:
        """The fitted forecaster: net, weights and transforms."""
        return load_bundle(self.folder, modules=self.modules)

    @property
    def report(self) -> Path:
        """Path of report.html."""
        return self.folder / REPORT

    def _intervals(self) -> dict[str, Interval]:
        intervals = self.judgement.net.intervals()
        for other, difference in self.judgement.against.items():
            intervals[f"skill less {other}"] = difference.skill
            intervals[f"rank_ic less {other}"] = difference.rank_ic
        return {k: value for k, value in intervals.items() if not math.isnan(value.estimate)}

    def _repr_html_(self) -> str:
        """Show the verdict and its metrics in a notebook."""
        rows = []
        for name, interval in self._intervals().items():
            is_share = name.startswith("skill")
            text = format_percent_interval(interval) if is_share else format_interval(interval)
            rows.append((name, text))
        caption = f"test span, {self.judgement.net.dates} trading dates, 95 % intervals"
        table = PlainTable(caption, ("", "net"), rows)
        parts = [render_paragraphs([self.verdict]), render_table(table, anchor="figures")]
        return "".join([*parts, render_paragraphs([str(self.folder)])])
