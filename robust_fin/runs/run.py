"""A finished run as one meets it in a notebook: figures, forecasts, verdict, where they lie."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig

from robust_fin.bundle.folder import Bundle, load_bundle, read_config
from robust_fin.errors import BundleError
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.report.page import render_paragraphs, render_table
from robust_fin.evaluation.report.report import REPORT
from robust_fin.evaluation.significance import Judgement, judge
from robust_fin.evaluation.tables import PlainTable
from robust_fin.evaluation.verdict import format_interval, format_percent_interval, verdict
from robust_fin.runs.results import METRICS, PREDICTIONS, ROWS


@dataclass(frozen=True)
class Run:
    """The folder of a finished run; what lies in it is read when it is asked for.

    Attributes:
        folder: of the run.
    """

    folder: Path

    @classmethod
    def of(cls, run: "Run | Path | str") -> "Run":
        """A run by its folder, or as it is.

        Raises:
            BundleError: the folder is not one of a run.
        """
        if isinstance(run, Run):
            return run
        folder = Path(run).expanduser()
        read_config(folder)
        return cls(folder)

    @cached_property
    def config(self) -> DictConfig:
        """The settings, resolved."""
        return read_config(self.folder)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds: name -> number, or None where there is none.

        Raises:
            BundleError: the run has not finished.
        """
        self.config  # noqa: B018  # else a folder that is no run would pass for an unfinished one
        path = self.folder / METRICS
        if not path.is_file():
            raise BundleError(
                f"{self.folder} has no {METRICS}: the run has not finished. "
                f"python -m robust_fin.train resume={self.folder} goes on with it"
            )
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The test rows: one a (time, contract, fold, model)."""
        return pd.read_parquet(self.folder / PREDICTIONS)

    @cached_property
    def rows(self) -> dict[str, Any]:
        """Where every input row went; of each fold where there are several."""
        found: dict[str, Any] = json.loads((self.folder / ROWS).read_text(encoding="utf-8"))
        return found

    @cached_property
    def judgement(self) -> Judgement:
        """What the forecasts of the test span carry, with intervals."""
        return judge(self.predictions, instrument=instantiate(self.config.instrument))

    @property
    def verdict(self) -> str:
        """The judgement in one or two sentences."""
        return verdict(self.judgement)

    @property
    def figures(self) -> pd.DataFrame:
        """The judgement as a table: estimate, low and high of each figure and paired difference."""
        ends = {name: (one.estimate, one.low, one.high) for name, one in self._intervals().items()}
        return pd.DataFrame.from_dict(ends, orient="index", columns=["estimate", "low", "high"])

    @cached_property
    def bundle(self) -> Bundle:
        """The fitted forecaster: weights and transforms."""
        return load_bundle(self.folder)

    @property
    def report(self) -> Path:
        """report.html."""
        return self.folder / REPORT

    def _intervals(self) -> dict[str, Interval]:
        found = self.judgement.net.intervals()
        for other, one in self.judgement.against.items():
            found |= {f"skill less {other}": one.skill, f"rank_ic less {other}": one.rank_ic}
        return {name: one for name, one in found.items() if not math.isnan(one.estimate)}

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, and the figures it rests on."""
        rows = [
            (
                name,
                format_percent_interval(one) if name.startswith("skill") else format_interval(one),
            )
            for name, one in self._intervals().items()
        ]
        caption = f"test span, {self.judgement.net.dates} trading dates, 95 % intervals"
        table = PlainTable(caption, ("", "net"), rows)
        shown = render_table(table, anchor="figures")
        return render_paragraphs([self.verdict]) + shown + render_paragraphs(
            [f"{self.folder}"]
        )  # fmt: skip
