"""Check the coverage of intervals and the false claims of the verdict on many synthetic markets.

python benchmarks/controls.py [--sets 100] [--rows 200000] [--fresh 1000000] [--quick] [--json FILE]
                              [--document FILE] [--regime-sessions 2]

Each data set is a separate synthetic market. All nets train in one population run, one net per data
set. With a planted signal, the 95 % interval of the test rank IC should contain the rank IC of the
same fitted net on fresh rows in 90 to 99 of 100 sets. On noise, the verdict should claim skill in
at most 8 of 100. Volatility regimes are short here: with 30 sessions, as for ES, a test span of 29
dates covers a single regime, and its interval cannot account for the others.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from controls_figure import Control, document
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from robust_fin.bundle.predictions import Forecast, mean_forecast, predictions_table
from robust_fin.cli.composition import conf_folder
from robust_fin.data.cache import NO_CACHE
from robust_fin.data.datamodule import BarDataModule, Market
from robust_fin.evaluation.significance import judge
from robust_fin.evaluation.verdict import claims_skill
from robust_fin.metrics import rank_ic
from robust_fin.runs.schema import register_schema
from robust_fin.runs.training import fit_settings, hide_known_warnings, load_first_fold
from robust_fin.runtime.terminal import show
from robust_fin.training.fitting import Fit, FitPlan
from robust_fin.training.population.fit import fit_population

PLANTED = 0.03  # rank IC of the oracle
FRESH_SEED = 100_000  # added to the seed of a data set for its fresh rows
WORDS = (
    "+experiment=top5", "split.refit=false", "cache.folder=null", "trainer.max_epochs=4",
    "trainer.enable_progress_bar=false", "population.members=1",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scheme:
    """Settings of the synthetic data sets.

    Attributes:
        sets: number of data sets.
        rows: bars of each data set.
        fresh: new bars that the fitted nets are scored on afterwards; 0 for none.
        regime_sessions: mean length of a volatility regime, in sessions.
    """

    sets: int
    rows: int
    fresh: int
    regime_sessions: float

    def config(self, signal: float, seed: int, *, rows: int) -> DictConfig:
        """Compose the config of a data set."""
        source = {"rows": rows, "seed": seed, "signal": signal}
        words = [f"source.synthetic.{name}={value}" for name, value in source.items()]
        words += [f"+source.synthetic.regime_sessions={self.regime_sessions}", f"seed={seed}"]
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return compose("train", overrides=[*WORDS, *words])


def controls(signal: float, scheme: Scheme) -> list[Control]:
    """Train one net per data set in a single population, and judge each net."""
    configs = [scheme.config(signal, seed, rows=scheme.rows) for seed in range(scheme.sets)]
    folds = [load_first_fold(config) for config in configs]
    with tempfile.TemporaryDirectory() as folder:
        plan = FitPlan(Path(folder), stage="", max_steps=None, resume=False)
        fits = fit_population(fit_settings(configs[0]), folds, plan)
    return [
        judged(data, fitted, signal=signal, seed=seed, scheme=scheme)
        for seed, (data, fitted) in enumerate(zip(folds, fits, strict=True))
    ]


def judged(
    data: BarDataModule, fitted: Fit, *, signal: float, seed: int, scheme: Scheme
) -> Control:
    """Judge a net on its test span and, if a signal was planted, on fresh rows."""
    rows, target = data.fitted.span("test"), data.fitted.target
    forecasts = {
        "net": mean_forecast(fitted.nets.scores(data.x("test"))),
        "constant": Forecast.single(np.full(rows.size, target.median)),
    }
    table = predictions_table(data.market.examples, rows, forecasts, target=target)
    found = judge(table).net
    other = scheme.config(signal, FRESH_SEED + seed, rows=scheme.fresh)
    truth = fresh_rank_ic(other, data, fitted) if signal and scheme.fresh else np.nan
    ic, skill = found.rank_ic, found.skill
    return Control(
        signal, seed, ic.estimate, ic.low, ic.high, truth,
        skill.estimate, skill.low, skill.high, claims_skill(found),
    )  # fmt: skip


def fresh_rank_ic(config: DictConfig, data: BarDataModule, fitted: Fit) -> float:
    """Return the rank IC of a fitted net on bars unseen by the net and its transforms."""
    source, target = instantiate(config.source), instantiate(config.target)
    market = Market.read(source, features=data.features, target=target, cache=NO_CACHE)
    examples = market.examples
    known = np.flatnonzero(np.isfinite(examples.outcome))
    x = torch.from_numpy(data.fitted.inputs(examples).rows(known))
    score = mean_forecast(fitted.nets.scores(x)).score
    return rank_ic(score, examples.outcome[known])


def main() -> None:
    """Run both controls and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--fresh", type=int, default=1_000_000)
    parser.add_argument("--regime-sessions", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true", help="6 sets of 60,000 rows")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path, help="written between its marks, with a figure")
    given = parser.parse_args()
    scheme = Scheme(given.sets, given.rows, given.fresh, given.regime_sessions)
    if given.quick:
        scheme = Scheme(6, 60_000, 200_000, given.regime_sessions)
    torch.set_num_threads(1)
    hide_known_warnings()
    register_schema()
    began = time.perf_counter()
    planted, noise = controls(PLANTED, scheme), controls(0.0, scheme)
    show(summary(planted, noise, rows=scheme.rows, seconds=time.perf_counter() - began))
    if given.document:
        document(given.document, planted, noise, rows=scheme.rows, fresh=scheme.fresh)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in planted + noise], indent=2) + "\n")


def summary(
    planted: Sequence[Control], noise: Sequence[Control], *, rows: int, seconds: float
) -> Table:
    """Return the results of both controls as a table."""
    table = Table(title=f"{len(planted)} sets of {rows:,} rows each, {seconds:.0f} s")
    for column in ("control", "sets", "found", "wanted of 100"):
        table.add_column(column, justify="left" if column == "control" else "right")
    held, claimed = sum(one.held for one in planted), sum(one.claimed for one in noise)
    name = f"planted rank IC {PLANTED}: the interval holds the rank IC on fresh rows"
    table.add_row(name, str(len(planted)), str(held), "90 to 99")
    name = f"planted rank IC {PLANTED}: skill is claimed"
    table.add_row(name, str(len(planted)), str(sum(one.claimed for one in planted)), "")
    table.add_row("noise: skill is claimed", str(len(noise)), str(claimed), "at most 8")
    return table


if __name__ == "__main__":
    main()
