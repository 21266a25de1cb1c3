"""Check that a refactoring changes no number: hash the results of ten commands.

python benchmarks/same_numbers.py --out FILE.json [--only NAME ...]
python benchmarks/same_numbers.py --against FILE.json [--only NAME ...]

`--out` writes a record. `--against` makes a new record, compares it with an old one, writes every
difference to standard output (name, old, new), and ends with exit code 1 if there is one. Either
takes 155 s of CPU time: about two minutes on two idle cores, up to four on busy ones.

The commands of this checkout run as a user runs them, on synthetic bars with fixed seeds. The
script does not import the package, so modules may be moved and renamed. A record is valid for one
machine and one environment: other processors and other versions of torch round differently.

A record maps `case/file`, and `case/file/part` for the parts of a file, to hashes and values:
weights and fitted transforms (name, dtype, shape, bytes), metrics.json, rows.json, members.json,
member scores, predictions and val losses by column, sweep.csv, and the output of leakcheck and
debug=overfit_batch.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

log = logging.getLogger("same_numbers")

Record = dict[str, str]

ROOT = Path(__file__).resolve().parents[1]
AT_A_TIME = 2  # cases in parallel; the numbers do not depend on it, as processes have one thread
PATIENCE = 600.0  # timeout of a command in seconds, long enough for a busy machine
# Timings in metrics.json, members.json and sweep.csv, which are not recorded because they differ
# between two runs of the same code. Names must match exactly, so that a new key is a difference.
CLOCK_KEYS = frozenset(
    {"fit_seconds", "steps_per_second", "member_steps_per_second", "job_seconds"}
)
CLOCK_WORDS = re.compile(r", in \d+ s$", re.MULTILINE)  # end of the last line of leakcheck
ABSENT = "absent"

QUIET = ("trainer.enable_progress_bar=false", "cache.folder=null", "report.pictures=false")
SMOKE = ("+experiment=smoke", *QUIET)
COMPILED = ("engine=compiled", "engine.steps_per_call=32")
# dropout, several checkpoints per epoch, a choice on val and a refit: all state to be restored
KILLED = (
    *SMOKE,
    *("features=study", "source.synthetic.rows=4000", "batch_size=64"),
    *("model.dropout=0.1", "trainer.max_epochs=4", "checkpoint.every_n_steps=5"),
)
FOLDS = (
    *SMOKE,
    *("split=walk_forward", "split.test_blocks=2", "split.refit=true", "features=rich"),
    *("model=prenorm_mlp", "loss=huber", "transform=robust_clip", "baselines=full"),
    "source.synthetic.rows=60000",
)
SEARCH = (
    *(*SMOKE, "sweep=optuna", "sweep.trials=4", "sweep.workers=1", "sweep.seed=0"),
    *("features=study", "source.synthetic.rows=8000", "split.refit=false"),
)


def environment(folder: Path) -> dict[str, str]:
    """Return the variables for this checkout's code, one thread, and its own ledger and cache."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "COLUMNS": "160",
        "ROBUST_FIN_LEDGER": str(folder / "trials.jsonl"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder.parent / "inductor"),
    }


def command(verb: str, *words: str) -> list[str]:
    """Return the command line of a robust_fin command."""
    return [sys.executable, "-m", f"robust_fin.{verb}", *words]


def called(folder: Path, verb: str, *words: str) -> str:
    """Run a robust_fin command in `folder` and return its standard output.

    Raises:
        RuntimeError: the command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command(verb, *words),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    if done.returncode:
        raise RuntimeError(f"{verb} {' '.join(words)}: {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


# the cases: each runs commands and returns their record


def trained(folder: Path, *words: str) -> Record:
    """Train, and record the run."""
    called(folder, "train", f"hydra.run.dir={folder / 'run'}", *words)
    return record_of_run(folder / "run")


def plain(folder: Path) -> Record:
    """Train with Lightning's own loop."""
    return trained(folder, *SMOKE)


def compiled(folder: Path) -> Record:
    """Train with the compiled engine."""
    return trained(folder, *SMOKE, *COMPILED)


def population(folder: Path) -> Record:
    """Train eight members in one run."""
    return trained(folder, *SMOKE, *COMPILED, "population.members=8")


def two_ranks(folder: Path) -> Record:
    """Train with two ranks on the CPU."""
    return trained(folder, *SMOKE, "trainer=ddp", "batch_size=128")


def walk_forward(folder: Path) -> Record:
    """Train on two folds, with other features, net and loss than the other cases, and LightGBM."""
    return trained(folder, *FOLDS)


def killed(folder: Path) -> Record:
    """Kill a run in its first epoch with SIGKILL, and resume it."""
    folder.mkdir(parents=True)
    run = folder / "run"
    kill_after(run / "checkpoints" / "last.ckpt", folder, *KILLED, f"hydra.run.dir={run}")
    called(folder, "train", f"resume={run}")
    return record_of_run(run)


def sweep(folder: Path) -> Record:
    """Run a search of four trials, one at a time."""
    called(folder, "train", f"hydra.sweep.dir={folder / 'sweep'}", *SEARCH)
    found = {"sweep.csv": digest_of_sweep(folder / "sweep" / "sweep.csv")}
    for run in sorted(path.parent for path in folder.glob("sweep/*/metrics.json")):
        found |= {f"{run.name}/{name}": value for name, value in record_of_run(run).items()}
    return found


def leakcheck(folder: Path) -> Record:
    """Run leakcheck, and record its output."""
    return lines_of(called(folder, "leakcheck", "+experiment=smoke", "leaks.cuts=4"), folder)


def overfit_batch(folder: Path) -> Record:
    """Overfit one batch, and record the output, which has the number of steps."""
    run = f"hydra.run.dir={folder / 'run'}"
    return lines_of(called(folder, "train", run, *SMOKE, "debug=overfit_batch"), folder)


def predict(folder: Path) -> Record:
    """Score bars from a file with the run of the case `plain`."""
    folder.mkdir(parents=True)
    bars, out = folder / "bars.csv", folder / "scores.parquet"
    made_bars(rows=12_000, seed=7).to_csv(bars, index=False)
    run = f"run={folder.parent / 'plain' / 'run'}"
    called(folder, "predict", run, f"source.path={bars}", "source.timezone=UTC", f"out={out}")
    return digests_of_table(out)


# in the order in which they start; predict needs plain
CASES: dict[str, Callable[[Path], Record]] = {
    "sweep": sweep,
    "plain": plain,
    "compiled": compiled,
    "predict": predict,
    "two_ranks": two_ranks,
    "walk_forward": walk_forward,
    "killed": killed,
    "population": population,
    "overfit_batch": overfit_batch,
    "leakcheck": leakcheck,
}
NEEDS = {"predict": "plain"}


def kill_after(path: Path, folder: Path, *words: str) -> None:
    """Start a training run, and kill it with SIGKILL as soon as a file exists.

    Raises:
        RuntimeError: the run ended before it was killed.
    """
    with (folder / "killed.log").open("wb") as said:
        process = subprocess.Popen(
            command("train", *words),
            cwd=folder,
            env=environment(folder),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        wait_for(path, process)
        os.killpg(process.pid, signal.SIGKILL)
    if process.wait(PATIENCE) != -signal.SIGKILL:
        raise RuntimeError(f"the run ended before it was killed: {folder / 'killed.log'}")


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the file exists, the process has ended, or the timeout has passed."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def made_bars(*, rows: int, seed: int) -> pd.DataFrame:
    """Create one-minute bars of one contract: a random walk in ticks."""
    random = np.random.default_rng(seed)
    close = 5000 + 0.25 * np.cumsum(random.integers(-3, 4, rows))
    opened = np.append(5000.0, close[:-1])
    wick = 0.25 * random.integers(0, 3, (2, rows))
    return pd.DataFrame(
        {
            "time": pd.date_range("2024-03-04 00:00", periods=rows, freq="1min"),
            "open": opened,
            "high": np.maximum(opened, close) + wick[0],
            "low": np.minimum(opened, close) - wick[1],
            "close": close,
            "volume": random.integers(1, 100, rows),
            "contract": "ESH24",
        }
    )


# the record of a file


def record_of_run(run: Path) -> Record:
    """Return the record of a finished run's files; missing files are left out.

    Raises:
        RuntimeError: the run has not finished.
    """
    if not (run / "metrics.json").is_file():
        raise RuntimeError(f"{run} has no metrics.json")
    found: Record = {}
    for name, reader in READERS.items():
        if (run / name).is_file():
            parts = reader(run / name)
            found |= {f"{name}/{part}": value for part, value in parts.items()}
            found[name] = digest(*(f"{part}={parts[part]}" for part in sorted(parts)))
    return found


def digests_of_tensors(path: Path) -> Record:
    """Return one hash per tensor, of its dtype, shape and bytes."""
    return {
        name: digest(str(value.dtype), str(value.shape), value.tobytes())
        for name, value in load_file(path).items()
    }


def digests_of_table(path: Path) -> Record:
    """Return one hash per column, of its dtype and values, and the column names and row count."""
    table = pd.read_parquet(path)
    found = {str(name): digest(str(one.dtype), values_of(one)) for name, one in table.items()}
    return found | {"(columns)": ", ".join(map(str, table.columns)), "(rows)": str(len(table))}


def values_of(column: pd.Series) -> bytes:
    """Return the bytes of a numeric column; of any other column, its values as text."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return column.to_numpy().tobytes()
    return "\n".join(map(str, column.tolist())).encode()


def figures_of(path: Path) -> Record:
    """Return every value of a JSON file except timings; the order of its keys does not matter."""
    return dict(flat(json.loads(path.read_text(encoding="utf-8"))))


def flat(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name and value of every leaf."""
    if isinstance(content, dict) and content:
        for key in sorted(content.keys() - CLOCK_KEYS):
            yield from flat(content[key], f"{name}/{key}" if name else key)
    elif isinstance(content, list) and content:
        for number, one in enumerate(content):
            yield from flat(one, f"{name}[{number}]")
    else:
        yield name, repr(content)


def hashed_figures_of(path: Path) -> Record:
    """Return one hash per member, because there are too many values."""
    members = json.loads(path.read_text(encoding="utf-8"))["members"]
    return {
        f"[{number}]": digest(*(f"{name}={value}" for name, value in flat(one)))
        for number, one in enumerate(members)
    }


READERS: dict[str, Callable[[Path], Record]] = {
    "bundle/model.safetensors": digests_of_tensors,
    "bundle/transforms.safetensors": digests_of_tensors,
    "member_scores.safetensors": digests_of_tensors,
    "metrics.json": figures_of,
    "rows.json": figures_of,
    "members.json": hashed_figures_of,
    "predictions.parquet": digests_of_table,
    "val_losses.parquet": digests_of_table,
}


def digest_of_sweep(path: Path) -> str:
    """Hash the cells of sweep.csv as text, except timings and paths."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    kept = table[[name for name in table.columns if name not in CLOCK_KEYS | {"run"}]]
    return digest(kept.to_csv(index=False))


def lines_of(said: str, folder: Path) -> Record:
    """Return the output of a command line by line, without seconds and folders."""
    text = CLOCK_WORDS.sub("", said).replace(str(folder), "FOLDER")
    lines = {f"line {number:02}": line for number, line in enumerate(text.splitlines(), start=1)}
    return lines | {"(all)": digest(text)}


def digest(*parts: str | bytes) -> str:
    """Hash several parts; the hash depends on where each part ends."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "big") + content)
    return found.hexdigest()


# the complete record, and the comparison of two records


def measured(names: Collection[str]) -> Record:
    """Run these cases, and those that they need, and return the record of these."""
    wanted = {*names, *(NEEDS[name] for name in names if name in NEEDS)}
    with tempfile.TemporaryDirectory(prefix="same_numbers_") as folder:
        found = in_parallel([name for name in CASES if name in wanted], Path(folder).resolve())
    parts = ((f"{case}/{name}", value) for case in found for name, value in found[case].items())
    return dict(sorted(part for part in parts if case_of(part[0]) in names))


def in_parallel(names: Collection[str], folder: Path) -> dict[str, Record]:
    """Return the records by case; a case waits for the one it needs, which was started earlier."""
    futures: dict[str, Future[Record]] = {}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for name in names:
            needed = futures.get(NEEDS.get(name, ""))
            futures[name] = pool.submit(timed, name, folder, needed)
    return {name: future.result() for name, future in futures.items()}


def timed(name: str, folder: Path, needed: "Future[Record] | None") -> Record:
    """Run one case in its own folder, and log its seconds."""
    if needed is not None:
        needed.result()
    began = time.perf_counter()
    found = CASES[name](folder / name)
    log.info("%s: %.0f s", name, time.perf_counter() - began)
    return found


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """Yield a text for every name whose values differ or that only one record has."""
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        if before != after:
            yield f"{name}\n  old {before}\n  new {after}\n"


def case_of(name: str) -> str:
    """Return the case of a name in a record."""
    return name.partition("/")[0]


def compared(old: Path, new: Record, names: Collection[str]) -> int:
    """Write the differences of these cases; return the exit code."""
    kept = json.loads(old.read_text(encoding="utf-8"))
    found = list(differences({k: v for k, v in kept.items() if case_of(k) in names}, new))
    sys.stdout.write("".join(found))
    log.info("%d names compared, %d differ", len(new), len(found))
    return 1 if found else 0


def words() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="write the record")
    what.add_argument("--against", type=Path, help="compare with this record, and write no file")
    parser.add_argument(
        "--only", action="append", choices=sorted(CASES), help="run only this case; may be repeated"
    )
    return parser


def main() -> int:
    """Make a record, then write or compare it; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = words().parse_args()
    names = given.only or list(CASES)
    began = time.perf_counter()
    new = measured(names)
    log.info("all: %.0f s", time.perf_counter() - began)
    if given.against:
        return compared(given.against, new, names)
    given.out.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
