"""Measure seconds and memory of the study's complete job, from the file to metrics.json.

python benchmarks/study_job.py [--bars FILE] [--quick] [--json FILE]

Each row is a separate process: `cold` compiles into an empty cache, `warm` reuses the cache of
`cold`, and `plain` (not with --quick) is Lightning's own loop. Without --bars the bars are
synthetic, as many as in the ES file. Wall seconds count from the start of the process; memory is
the peak resident set.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from robust_fin.runtime.terminal import show

ROWS = 1_073_305  # number of rows of the ES file


def job(run: Path, cache: Path, words: list[str]) -> tuple[float, float]:
    """Return the wall seconds and peak memory in MB of one training process."""
    command = [sys.executable, "-m", "robust_fin.train", "+experiment=study"]
    command += [f"hydra.run.dir={run}", "trainer.enable_progress_bar=false", *words]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def measure(bars: Path | None, quick: bool) -> list[dict[str, Any]]:
    """Measure all jobs, one row each."""
    rows = 100_000 if quick else ROWS
    source = f"source.path={bars}" if bars else f"source.synthetic.rows={rows}"
    kinds = (
        {"cold": [], "warm": []} if quick else {"cold": [], "warm": [], "plain": ["engine=plain"]}
    )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, words in kinds.items():
            run = Path(folder) / kind
            seconds, peak = job(run, Path(folder) / "inductor", [source, *words])
            metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
            found.append(
                {
                    "job": kind,
                    "wall_seconds": seconds,
                    "fit_seconds": metrics["fit_seconds"],
                    "steps": metrics["steps"],
                    "steps_per_second": metrics["steps_per_second"],
                    "peak_mb": peak,
                    "test_loss": metrics["test/loss"],
                    "test_loss_trivial": metrics["test/loss_trivial"],
                }
            )
    return found


def main() -> None:
    """Measure, print the table, and write the file given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bars", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = measure(given.bars, given.quick)
    table = Table(title="the study's job, file to metrics.json", title_justify="left")
    names = list(rows[0])
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        cells = (row[name] for name in names)
        table.add_row(*(f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    show(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
