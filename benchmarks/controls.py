"""Whether intervals hold the truth, and noise is called noise: many synthetic sets, one population.

python benchmarks/controls.py [--sets 100] [--rows 200000] [--fresh 1000000] [--quick] [--json FILE]
                              [--document FILE]

Each set is a market of its own. All nets train in one run, a data set each. Planted: the 95 %
interval of each net's test rank IC should hold the rank IC that the same fitted net has on fresh
rows in 90 to 99 sets of 100. Noise: the verdict should claim skill in at most 8 of 100.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from controls_figure import Control, document
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from robust_fin.bundle import Forecast, mean_forecast, predictions_table
from robust_fin.command import conf_folder
from robust_fin.data.cache import NO_CACHE
from robust_fin.data.datamodule import BarDataModule, Market
from robust_fin.evaluation.console import show
from robust_fin.evaluation.significance import judge
from robust_fin.evaluation.verdict import has_skill
from robust_fin.metrics import rank_ic
from robust_fin.settings import register_schema
from robust_fin.train import load_data, quiet
from robust_fin.training.fitting import Fit, FitPlan
from robust_fin.training.member_fit import fit_population

PLANTED = 0.03  # rank IC of the oracle
FRESH_SEED = 100_000  # added to the seed of a set, for rows that no net has seen
WORDS = (
    "+experiment=top5", "split.refit=false", "cache.folder=null", "trainer.max_epochs=4",
    "trainer.enable_progress_bar=false", "population.members=1",
)  # fmt: skip


def settings(signal: float, seed: int, rows: int, words: Sequence[str] = ()) -> DictConfig:
    """The config of a set."""
    source = [f"source.synthetic.{k}" for k in (f"rows={rows}", f"seed={seed}", f"signal={signal}")]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("train", overrides=[*WORDS, *source, f"seed={seed}", *words])


def controls(signal: float, *, sets: int, rows: int, fresh: int) -> list[Control]:
    """Train a net on each set, all in one population, and judge every one."""
    configs = [settings(signal, seed, rows) for seed in range(sets)]
    folds = [load_data(config) for config in configs]
    with tempfile.TemporaryDirectory() as folder:
        plan = FitPlan(Path(folder), stage="", max_steps=None, resume=False)
        fits = fit_population(configs[0], folds, plan)
    return [
        judged(config, data, fitted, signal=signal, seed=seed, fresh=fresh)
        for seed, (config, data, fitted) in enumerate(zip(configs, folds, fits, strict=True))
    ]


def judged(
    config: DictConfig, data: BarDataModule, fitted: Fit, *, signal: float, seed: int, fresh: int
) -> Control:
    """The interval on test, and the same net on fresh rows."""
    rows, target = data.fitted.span("test"), data.fitted.target
    forecasts = {
        "net": mean_forecast(fitted.nets.scores(data.x("test"))),
        "constant": Forecast.single(np.full(rows.size, target.median)),
    }
    table = predictions_table(data.market.examples, rows, forecasts, target=target)
    found = judge(table).net
    truth = fresh_rank_ic(config, data, fitted, seed=seed, rows=fresh) if fresh else np.nan
    ic = found.rank_ic
    skill = found.skill
    return Control(
        signal, seed, ic.estimate, ic.low, ic.high, truth,
        skill.estimate, skill.low, skill.high, has_skill(found),
    )  # fmt: skip


def fresh_rank_ic(
    config: DictConfig, data: BarDataModule, fitted: Fit, *, seed: int, rows: int
) -> float:
    """Rank IC of a fitted net on bars that neither it nor its transforms have seen."""
    signal = config.source.synthetic.signal
    other = settings(signal, FRESH_SEED + seed, rows)
    source, target = instantiate(other.source), instantiate(other.target)
    market = Market.read(source, features=data.features, target=target, cache=NO_CACHE)
    examples = market.examples
    known = np.flatnonzero(np.isfinite(examples.outcome))
    x = torch.from_numpy(data.fitted.transform.transform(examples.features[known]))
    score = mean_forecast(fitted.nets.scores(x)).score
    return rank_ic(score, examples.outcome[known])


def main() -> None:
    """Both controls, as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--fresh", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="6 sets of 60,000 rows")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--document", type=Path, help="written between its marks, with a figure")
    given = parser.parse_args()
    sizes = {"sets": given.sets, "rows": given.rows}
    fresh = given.fresh
    if given.quick:
        sizes, fresh = {"sets": 6, "rows": 60_000}, 200_000
    torch.set_num_threads(1)
    quiet()
    register_schema()
    began = time.perf_counter()
    planted = controls(PLANTED, fresh=fresh, **sizes)
    noise = controls(0.0, fresh=0, **sizes)
    show(summary(planted, noise, rows=sizes["rows"], seconds=time.perf_counter() - began))
    if given.document:
        document(given.document, planted, noise, rows=sizes["rows"], fresh=fresh)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in planted + noise], indent=2) + "\n")


def summary(
    planted: Sequence[Control], noise: Sequence[Control], *, rows: int, seconds: float
) -> Table:
    """What the two controls found."""
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
