"""Measure seconds and memory of a fit by number of members and number of parameters.

python benchmarks/scale.py [--quick] [--json FILE]

Each row is a separate process with synthetic bars and the compiled engine inside the Trainer.
Seconds are those of the fit without compiling. `grown_mb` is peak memory minus the smallest peak of
all rows. Exponents are least-squares fits of the logarithms.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from rich.table import Table

from robust_fin.cli.composition import conf_folder
from robust_fin.runs.schema import register_schema
from robust_fin.runs.training import fit_settings, hide_known_warnings, load_first_fold
from robust_fin.runtime.terminal import show
from robust_fin.training.fitting import FitPlan
from robust_fin.training.module import parameter_count
from robust_fin.training.population.fit import fit_population

MEMBERS = (1, 4, 16, 64, 256, 1024)
WIDTHS = ([16, 8], [64, 32], [128, 64, 32], [256, 128, 64], [512, 256, 128], [1024, 768, 256])
SMALL, WIDE = {"batch": 16, "steps": 2000}, {"batch": 256, "steps": 64}


def case(members: int, hidden: Sequence[int], batch: int, steps: int) -> dict[str, Any]:
    """Run one fit in this process."""
    torch.set_num_threads(1)
    hide_known_warnings()
    register_schema()
    words = [
        "+experiment=study", f"batch_size={batch}", f"model.hidden={list(hidden)}",
        f"population.members={members}", f"trainer.max_steps={max(1, steps)}",
        "trainer.enable_progress_bar=false", "source.synthetic.rows=60000",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("train", overrides=words)
    data = load_first_fold(config)
    with tempfile.TemporaryDirectory() as folder:
        plan = FitPlan(Path(folder), stage="", max_steps=None, resume=False)
        (done,) = fit_population(fit_settings(config), [data], plan)
    return {
        "members": members,
        "parameters": parameter_count(done.nets.net),
        "batch": batch,
        "steps": steps,
        "seconds": done.summary.seconds,
        "member_steps_per_second": done.summary.member_steps / done.summary.seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_a_process(**settings: Any) -> dict[str, Any]:
    """Run `case` in a separate process, to measure its memory alone."""
    command = [sys.executable, __file__, "--case", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(quick: bool) -> list[dict[str, Any]]:
    """Measure numbers of members at one net size, then net sizes at one member."""
    share = 10 if quick else 1
    small, wide = SMALL | {"steps": SMALL["steps"] // share}, WIDE | {"steps": 64 // share}
    members = MEMBERS[::2] if quick else MEMBERS
    widths = WIDTHS[:2] if quick else WIDTHS
    found = [in_a_process(members=one, hidden=WIDTHS[0], **small) for one in members]
    found += [in_a_process(members=1, hidden=one, **wide) for one in widths]
    least = min(row["peak_mb"] for row in found)
    return [{**row, "grown_mb": row["peak_mb"] - least} for row in found]


def exponent(rows: Sequence[dict[str, Any]], x: str, y: str) -> float:
    """Return the slope of log y on log x."""
    return float(np.polyfit(*(np.log([row[key] for row in rows]) for key in (x, y)), 1)[0])


def main() -> None:
    """Measure, print the table, and write the file given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        sys.stdout.write(json.dumps(case(**given.case)) + "\n")
        return
    rows = measure(given.quick)
    table = Table(title="cost of scale, one thread", title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{v:,.1f}" if isinstance(v, float) else f"{v:,}" for v in row.values()))
    show(table)
    by_members = [row for row in rows if row["batch"] == SMALL["batch"]]
    by_size = [row for row in rows if row["batch"] == WIDE["batch"]]
    many = [row for row in by_members if row["members"] >= 4]
    show(
        f"seconds grow with members^{exponent(many, 'members', 'seconds'):.2f} from 4 on, and with "
        f"parameters^{exponent(by_size, 'parameters', 'seconds'):.2f}"
    )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
