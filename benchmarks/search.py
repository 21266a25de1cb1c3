"""Measure what an Optuna search gains over the default settings: 60 trials on three markets.

python benchmarks/search.py [--trials 60] [--seeds 0 1 2] [--rows 80000] [--signal 0.3]
                            [--workers 1] [--folder DIR] [--json FILE] [key=value ...]

Each market is synthetic, with a planted signal. The search uses the val span only. Its best trial
is compared with two kinds of luck: the expected best of as many equally good trials, with the
spread of the trials, and the expected best of as many seeds of the default settings, with the
spread of the seeds. The deflated skill is measured on val dates that were not used for the choice.
The gain that remains is measured on the test span, which no choice used, as a paired difference
with its 95 % interval. With --folder an interrupted run continues.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich.table import Table

from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.multiple_testing import BBCResult, bbc_cv, expected_maximum, robust_std
from robust_fin.evaluation.run_selection import compare_runs
from robust_fin.evaluation.verdict import format_percent_interval
from robust_fin.runs.results import VAL_LOSSES
from robust_fin.runtime.terminal import show
from robust_fin.sweeps.job import RECORD
from robust_fin.sweeps.sweep import CSV, FIGURE
from robust_fin.sweeps.sweep_summary import val_skill_by_date

MEMBERS = 16  # seeds of the default settings
WORDS = (
    "+experiment=search", "engine=plain", "split.refit=false", "report.pictures=false",
    "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1000",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """Result of a search on one market; skills are fractions.

    Attributes:
        seed: seed of market, nets and sampler.
        states: number of trials by final state.
        default: val/skill of the default settings.
        best: val/skill of the chosen trial.
        settings: settings of the chosen trial.
        deflated: val/skill of the best trial on dates not used for the choice, and its difference
            from the default settings.
        luck_of_trials: expected best of as many equal trials, with the spread of the trials.
        luck_of_seeds: expected best of as many seeds of the default settings.
        test_default: test/skill of the default settings.
        test_best: test/skill of the chosen trial.
        apart: test_best minus test_default on the same rows, with its interval.
        hours: duration of the search.
    """

    seed: int
    states: dict[str, int]
    default: float
    best: float
    settings: str
    deflated: BBCResult
    luck_of_trials: float
    luck_of_seeds: float
    test_default: float
    test_best: float
    apart: Interval
    hours: float


def train(words: Sequence[str], log: Path) -> None:
    """Run a train command; exit code 1 is accepted, as a sweep with a failed job ends with it."""
    with log.open("ab") as file:
        command = [sys.executable, "-m", "robust_fin.train", *words]
        code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    if code not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} ended with {code}; see {log}")


def search(folder: Path, seed: int, options: argparse.Namespace) -> Found:
    """Search one market, and train the default settings with other seeds."""
    market = [f"source.synthetic.{key}={value}" for key, value in
              {"rows": options.rows, "seed": seed, "signal": options.signal}.items()]  # fmt: skip
    common = [
        *WORDS, *market, f"seed={seed}", f"cache.folder={folder / 'cache'}",
        f"ledger={folder / 'trials.jsonl'}", *options.words,
    ]  # fmt: skip
    sweep, many = folder / f"search_{seed}", folder / f"seeds_{seed}"
    began = time.perf_counter()
    if (sweep / RECORD).exists():
        train([f"sweep.resume={sweep}"], folder / "log")
    else:
        asked = [f"sweep.trials={options.trials}", f"sweep.workers={options.workers}"]
        asked += [f"sweep.seed={seed}", f"hydra.sweep.dir={sweep}"]
        train([*common, *asked], folder / "log")
    hours = (time.perf_counter() - began) / 3600
    if not (many / "metrics.json").exists():
        plain = [word for word in common if word != WORDS[0]]
        words = ["+experiment=top5", f"population.members={MEMBERS}", f"hydra.run.dir={many}"]
        train([*words, *plain], folder / "log")
    return judged(seed, sweep, many, hours)


def judged(seed: int, sweep: Path, many: Path, hours: float) -> Found:
    """Read the results of a search and of the seeds."""
    table = pd.read_csv(sweep / CSV)
    skills = table[FIGURE].dropna().tolist()
    best, default = table[table["chosen"]].iloc[0], table[table["job"] == 0].iloc[0]
    members = json.loads((many / "members.json").read_text(encoding="utf-8"))["members"]
    seeds = [one[FIGURE] for one in members if one.get(FIGURE) is not None]
    runs = [sweep / str(one["run"]) for one in (best, default)]
    both = compare_runs(*(pd.read_parquet(run / "predictions.parquet") for run in runs))
    assert both is not None
    return Found(
        seed=seed,
        states=table["state"].value_counts().to_dict(),
        default=float(default[FIGURE]),
        best=float(best[FIGURE]),
        settings=searched(best, table),
        deflated=chosen_again(sweep, table),
        luck_of_trials=luck(skills, len(table)),
        luck_of_seeds=luck(seeds, len(table)),
        test_default=both.second.skill.estimate,
        test_best=both.first.skill.estimate,
        apart=both.difference.skill,
        hours=hours,
    )


def chosen_again(sweep: Path, table: pd.DataFrame) -> BBCResult:
    """Compare the choice among the finished trials with the default settings."""
    ended = table[table[FIGURE].notna()]
    runs = [sweep / str(run) / VAL_LOSSES for run in ended["run"]]
    gains = pd.concat(
        [val_skill_by_date(pd.read_parquet(run), None) for run in runs], axis=1, join="inner"
    )
    return bbc_cv(gains.to_numpy(), reference=ended["job"].tolist().index(0))


def luck(figures: Sequence[float], trials: int) -> float:
    """Return the expected best of this many equal trials, with the spread of the given ones."""
    mean = math.fsum(figures) / len(figures)
    return mean + expected_maximum(trials, spread=robust_std(figures))


def searched(row: pd.Series, table: pd.DataFrame) -> str:
    """Format the searched keys: the columns between the reason and the figures."""
    columns = list(table.columns)
    keys = columns[columns.index("reason") + 1 : columns.index(FIGURE)]
    values = (f"{row[key]:.3g}" if isinstance(row[key], float) else row[key] for key in keys)
    return ", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))


def shown(found: Sequence[Found]) -> Table:
    """Return a table with one column per market."""
    table = Table(title="the best of a search, and the default settings; skill over the constant")
    table.add_column("market")
    for one in found:
        table.add_column(str(one.seed), justify="right")
    lines: dict[str, Callable[[Found], str]] = {
        "trials": lambda one: ", ".join(f"{count} {state}" for state, count in one.states.items()),
        "val, default settings": lambda one: share(one.default),
        "val, best": lambda one: share(one.best),
        "val, best, deflated": lambda one: format_percent_interval(one.deflated.deflated),
        "val, best less default, deflated": lambda one: format_percent_interval(over_default(one)),
        "luck of as many equal trials": lambda one: share(one.luck_of_trials),
        "luck of as many seeds": lambda one: share(one.luck_of_seeds),
        "test, default settings": lambda one: share(one.test_default),
        "test, best": lambda one: share(one.test_best),
        "test, best less default": lambda one: format_percent_interval(one.apart),
        "hours": lambda one: f"{one.hours:.2f}",
    }
    for name, line in lines.items():
        table.add_row(name, *map(line, found))
    return table


def share(figure: float) -> str:
    """Format a fraction in percent."""
    return f"{100 * figure:+.3f} %"


def over_default(one: Found) -> Interval:
    """Return the deflated gain of the best trial over the default settings."""
    assert one.deflated.difference is not None
    return one.deflated.difference


def words_of(found: Sequence[Found]) -> list[str]:
    """Summarise the results in sentences."""
    counts = {
        "val/skill above that of the default settings": lambda one: one.best > one.default,
        "the same deflated, its interval above 0": lambda one: over_default(one).is_above(0),
        "beyond the luck of as many equal trials": lambda one: one.best > one.luck_of_trials,
        "beyond the luck of as many seeds": lambda one: one.best > one.luck_of_seeds,
        "test/skill above, its interval above 0": lambda one: one.apart.is_above(0),
        "test/skill below, its interval below 0": lambda one: one.apart.is_below(0),
    }
    said = [f"{name}: {sum(map(holds, found))} of {len(found)}" for name, holds in counts.items()]
    return [*said, *(f"market {one.seed}: {one.settings}" for one in found)]


def main() -> None:
    """Search, judge and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=80_000)
    parser.add_argument("--signal", type=float, default=0.3, help="rank IC of the oracle")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("words", nargs="*", help="further settings of all trials")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        found = [search(folder, seed, options) for seed in options.seeds]
    show(shown(found), *words_of(found))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
