"""Measure each stage of the input pipeline, from a Parquet file to transformed float32 arrays.

python benchmarks/pipeline.py [--quick] [--rows N ...] [--json FILE] [--blocks ROWS]

The table has seconds and rows/s of each stage at several sizes of synthetic bars, and the exponent
with which its seconds grow (1 is linear). Every size runs in a separate process, so that peak
memory is measured per size; the bars are made in another process. With --blocks the file is read in
blocks into a cache, and is never in memory as a whole.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from robust_fin.cli.composition import conf_folder
from robust_fin.data.cache import Cache
from robust_fin.data.examples import make_examples
from robust_fin.data.folds import Market, fit_fold, prepare_fold
from robust_fin.features.registry import compute_features
from robust_fin.market.synthetic import synthetic_market
from robust_fin.runs.schema import register_schema
from robust_fin.runtime.terminal import show

SIZES, QUICK = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000), (100_000, 300_000, 1_000_000)
STAGES = ("load", "features", "target", "transforms")
PIECE = 1_000_000  # rows of synthetic bars per call


def make_file(path: Path, rows: int) -> None:
    """Write synthetic bars, a million at a time, in time order."""
    start, writer = "2005-01-03", None
    for done in range(0, rows, PIECE):
        bars = synthetic_market(min(PIECE, rows - done), seed=done // PIECE, start=start).bars
        table = pa.Table.from_pandas(bars.drop(columns="session"), preserve_index=False)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=PIECE)
        start = str((bars["time"].iloc[-1] + pd.Timedelta("4D")).date())
    if writer is not None:
        writer.close()


def settings(path: Path, words: Sequence[str] = ()) -> DictConfig:
    """Compose the config of the top5 experiment on a file."""
    register_schema()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("train", [f"source.path={path}", "+experiment=top5", *words])


class Clock:
    """Measures the seconds of each stage."""

    def __init__(self) -> None:
        """Start without stages."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of the with statement."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB, mapped files included.

    On Linux it is read from /proc, since getrusage includes the peak of the parent process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def one_pass(path: Path) -> dict[str, Any]:
    """Measure each stage separately, on tables held in memory."""
    config, clock = settings(path), Clock()
    features, target = instantiate(config.features), instantiate(config.target)
    source = instantiate(config.source)
    source.labeller()  # the calendar is built once per process
    with clock.stage("load"):
        bars = source.load()
    with clock.stage("features"):
        compute_features(bars.table, features.names)
    with clock.stage("target"):
        target.label(bars.table, bar=bars.bar)
    examples = make_examples(bars, names=features.names, target=target)
    with clock.stage("transforms"):
        fitted = fit_fold(
            examples,
            features=features,
            transform=instantiate(config.transform),
            split=instantiate(config.split),
        )
        tensors = [torch.from_numpy(fitted.x(examples, span)) for span in ("train", "val", "test")]
    assert sum(map(len, tensors)) > 0
    return {"seconds": clock.seconds, "peak_mb": peak_mb()}


def in_blocks(path: Path, folder: Path, block_rows: int) -> dict[str, Any]:
    """Measure the file in blocks into prepared arrays on disk, then reading those."""
    config, clock = settings(path, [f"source.block_rows={block_rows}"]), Clock()
    features, target = instantiate(config.features), instantiate(config.target)
    source, cache = instantiate(config.source), Cache(str(folder), 100.0)
    fold = {"transform": instantiate(config.transform), "split": instantiate(config.split)}
    began_at = peak_mb()
    for suffix in ("", ", kept"):
        with clock.stage(f"examples{suffix}"):
            market = Market.read(source, features=features, target=target, cache=cache)
        with clock.stage(f"transforms{suffix}"):
            fitted = prepare_fold(market, features=features, cache=cache, **fold)
    x = torch.from_numpy(fitted.x(market.examples, "train"))
    assert x.dtype == torch.float32
    size = sum(one.stat().st_size for one in folder.rglob("*.npy")) / 1e6
    found = {"seconds": clock.seconds, "peak_mb": peak_mb(), "disk_mb": size}
    return found | {"imports_mb": began_at, "train_rows": len(x)}


def apart(work: str, *words: object) -> dict[str, Any]:
    """Run a function of this script in a separate process."""
    command = [sys.executable, __file__, "--work", work, *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def worker(work: str, words: Sequence[str]) -> dict[str, Any]:
    """Run the function that `apart` names; entry point of its process."""
    jobs: dict[str, Callable[[], Any]] = {
        "make": lambda: make_file(Path(words[0]), int(words[1])),
        "one_pass": lambda: one_pass(Path(words[0])),
        "in_blocks": lambda: in_blocks(Path(words[0]), Path(words[1]), int(words[2])),
    }
    return jobs[work]() or {"peak_mb": peak_mb()}


def measured(sizes: Sequence[int], blocks: int | None) -> list[dict[str, Any]]:
    """Measure all sizes and stages, one row each."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="robust_fin-pipeline-") as folder:
            path = Path(folder) / "bars.parquet"
            apart("make", path, size)
            if blocks is None:
                found = apart("one_pass", path)
            else:
                found = apart("in_blocks", path, Path(folder) / "kept", blocks)
        rest = {name: value for name, value in found.items() if name != "seconds"}
        for stage, seconds in found["seconds"].items():
            speed = size / seconds
            row = {"rows": size, "stage": stage, "seconds": seconds, "rows_per_second": speed}
            rows.append({**row, "block_rows": blocks, **rest})
    return rows


def exponents(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the least-squares slope of log seconds on log rows by stage; NaN for a single size."""
    found = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        points = [(row["rows"], row["seconds"]) for row in rows if row["stage"] == stage]
        x, y = np.log(np.array(points)).T
        found[stage] = float(np.polyfit(x, y, 1)[0]) if len(points) > 1 else math.nan
    return found


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Return a table of seconds, rows/s and memory, and one of the exponents."""
    measures = Table(title="The way in", title_justify="left")
    for name in ("rows", "stage", "seconds", "rows/s", "peak MB of the process"):
        measures.add_column(name, justify="left" if name == "stage" else "right")
    for row in rows:
        numbers = (
            f"{row['seconds']:.3f}",
            f"{row['rows_per_second']:,.0f}",
            f"{row['peak_mb']:,.0f}",
        )
        measures.add_row(f"{row['rows']:,}", row["stage"], *numbers)
    growth = Table(title="seconds ~ rows ^ exponent", title_justify="left")
    growth.add_column("stage")
    growth.add_column("exponent", justify="right")
    for stage, exponent in exponents(rows).items():
        growth.add_row(stage, f"{exponent:.2f}")
    return [measures, growth]


def main() -> None:
    """Measure, print the tables, and write the file given on the command line."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--quick", action="store_true", help="up to a million rows")
    words.add_argument("--rows", type=int, nargs="+", help="numbers of rows")
    words.add_argument("--blocks", type=int, help="rows per block; prepares the arrays on disk")
    words.add_argument("--json", type=Path, help="write the rows as a list of objects")
    words.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.work:
        sys.stdout.write(json.dumps(worker(given.work[0], given.work[1:])) + "\n")
        return
    rows = measured(given.rows or (QUICK if given.quick else SIZES), given.blocks)
    growth = exponents(rows)
    rows = [{**row, "exponent": growth[row["stage"]]} for row in rows]
    if given.json:
        clean = [{k: None if v != v else v for k, v in row.items()} for row in rows]
        given.json.write_text(json.dumps(clean, indent=1) + "\n", encoding="utf-8")
    show(*tables(rows))


if __name__ == "__main__":
    main()
