"""Whether a refactoring has changed a number: hashes of what ten commands compute.

python benchmarks/same_numbers.py --out FILE.json [--only NAME ...]
python benchmarks/same_numbers.py --against FILE.json [--only NAME ...]

`--out` writes a record, `--against` makes a new one and compares it with an old one, writes every
difference to standard output (name, old, new) and ends with exit code 1 where there is one. Either
takes 155 s of processor time: about two minutes on two free cores, up to four where others work.

The commands are those of this checkout, started as a user starts them, on bars made from fixed
seeds; nothing of the package is imported, so its modules may move and get other names. A record
holds for one machine and one environment: another processor, or another torch, rounds otherwise.

What is in a record, by `case/file` and, of a file with figures, by `case/file/figure`: weights and
fitted transforms (names, kinds, shapes, bytes), metrics.json, rows.json, members.json, the scores
of members, predictions and val losses by column, sweep.csv, and what leakcheck and
debug=overfit_batch say.
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
AT_A_TIME = 2  # cases; every process has one thread, so the numbers do not depend on it
PATIENCE = 600.0  # seconds for one command; a shared machine can be slow
# Left out of metrics.json, members.json and sweep.csv: they are read from the clock, so they
# differ between two runs of the same code. Exact names: a new one shows as a difference.
CLOCK_KEYS = frozenset(
    {"fit_seconds", "steps_per_second", "member_steps_per_second", "job_seconds"}
)
CLOCK_WORDS = re.compile(r", in \d+ s$", re.MULTILINE)  # how leakcheck's last line ends
ABSENT = "absent"

QUIET = ("trainer.enable_progress_bar=false", "cache.folder=null", "report.pictures=false")
SMOKE = ("+experiment=smoke", *QUIET)
COMPILED = ("engine=compiled", "engine.steps_per_call=32")
# dropout, several checkpoints an epoch, a choice and a refit: whatever a resumed run must restore
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
    """This checkout's code, one thread a process, and no ledger or compile cache of others."""
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
    """The words that start a verb."""
    return [sys.executable, "-m", f"robust_fin.{verb}", *words]


def called(folder: Path, verb: str, *words: str) -> str:
    """Run a verb in `folder`; what it says on standard output.

    Raises:
        RuntimeError: it failed.
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


# the cases: what is run, and the record of it


def trained(folder: Path, *words: str) -> Record:
    """Train to the end."""
    called(folder, "train", f"hydra.run.dir={folder / 'run'}", *words)
    return record_of_run(folder / "run")


def plain(folder: Path) -> Record:
    """Lightning's own loop."""
    return trained(folder, *SMOKE)


def compiled(folder: Path) -> Record:
    """The compiled loop."""
    return trained(folder, *SMOKE, *COMPILED)


def population(folder: Path) -> Record:
    """Eight members in one run."""
    return trained(folder, *SMOKE, *COMPILED, "population.members=8")


def two_ranks(folder: Path) -> Record:
    """Two processes on the CPU."""
    return trained(folder, *SMOKE, "trainer=ddp", "batch_size=128")


def walk_forward(folder: Path) -> Record:
    """Two folds, with other features, net and loss than the other cases, and LightGBM."""
    return trained(folder, *FOLDS)


def killed(folder: Path) -> Record:
    """End a run within its first epoch by SIGKILL, and go on with it."""
    folder.mkdir(parents=True)
    run = folder / "run"
    kill_after(run / "checkpoints" / "last.ckpt", folder, *KILLED, f"hydra.run.dir={run}")
    called(folder, "train", f"resume={run}")
    return record_of_run(run)


def sweep(folder: Path) -> Record:
    """Four trials of a search, one after the other."""
    called(folder, "train", f"hydra.sweep.dir={folder / 'sweep'}", *SEARCH)
    found = {"sweep.csv": digest_of_sweep(folder / "sweep" / "sweep.csv")}
    for run in sorted(path.parent for path in folder.glob("sweep/*/metrics.json")):
        found |= {f"{run.name}/{name}": value for name, value in record_of_run(run).items()}
    return found


def leakcheck(folder: Path) -> Record:
    """The table of what was compared."""
    return lines_of(called(folder, "leakcheck", "+experiment=smoke", "leaks.cuts=4"), folder)


def overfit_batch(folder: Path) -> Record:
    """Learn one batch by heart; how many steps that takes."""
    run = f"hydra.run.dir={folder / 'run'}"
    return lines_of(called(folder, "train", run, *SMOKE, "debug=overfit_batch"), folder)


def predict(folder: Path) -> Record:
    """Score bars from a file with the plain run."""
    folder.mkdir(parents=True)
    bars, out = folder / "bars.csv", folder / "scores.parquet"
    made_bars(rows=12_000, seed=7).to_csv(bars, index=False)
    run = f"run={folder.parent / 'plain' / 'run'}"
    called(folder, "predict", run, f"source.path={bars}", "source.timezone=UTC", f"out={out}")
    return digests_of_table(out)


# in this order they are started; predict comes after plain, which it needs
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
    """Start a training run and end it by SIGKILL as soon as a file is there.

    Raises:
        RuntimeError: it ended before.
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
    """Until the file is there, the process has ended, or patience has."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def made_bars(*, rows: int, seed: int) -> pd.DataFrame:
    """Bars of one contract, minute by minute: a random walk in ticks."""
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


# what is kept of the files of a run


def record_of_run(run: Path) -> Record:
    """Hashes of a finished run's files; one that is not there has none.

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
    """A hash a tensor: its kind, its shape and its bytes."""
    return {
        name: digest(str(value.dtype), str(value.shape), value.tobytes())
        for name, value in load_file(path).items()
    }


def digests_of_table(path: Path) -> Record:
    """A hash a column: its kind and its values; and the order of the columns."""
    table = pd.read_parquet(path)
    found = {str(name): digest(str(one.dtype), values_of(one)) for name, one in table.items()}
    return found | {"(columns)": ", ".join(map(str, table.columns)), "(rows)": str(len(table))}


def values_of(column: pd.Series) -> bytes:
    """The bytes of plain numbers; of everything else how it is written."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return column.to_numpy().tobytes()
    return "\n".join(map(str, column.tolist())).encode()


def figures_of(path: Path) -> Record:
    """Every figure of a JSON file as it is written, but the clock's; in whatever order."""
    return dict(flat(json.loads(path.read_text(encoding="utf-8"))))


def flat(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of all leaves."""
    if isinstance(content, dict) and content:
        for key in sorted(content.keys() - CLOCK_KEYS):
            yield from flat(content[key], f"{name}/{key}" if name else key)
    elif isinstance(content, list) and content:
        for number, one in enumerate(content):
            yield from flat(one, f"{name}[{number}]")
    else:
        yield name, repr(content)


def hashed_figures_of(path: Path) -> Record:
    """One hash for the figures of a member each; there are too many to keep."""
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
    """Hash of the cells of sweep.csv as they are written, but the clock's columns and paths."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    kept = table[[name for name in table.columns if name not in CLOCK_KEYS | {"run"}]]
    return digest(kept.to_csv(index=False))


def lines_of(said: str, folder: Path) -> Record:
    """What a command said, line by line, without seconds and places."""
    text = CLOCK_WORDS.sub("", said).replace(str(folder), "FOLDER")
    lines = {f"line {number:02}": line for number, line in enumerate(text.splitlines(), start=1)}
    return lines | {"(all)": digest(text)}


def digest(*parts: str | bytes) -> str:
    """One hash of several things; where one ends counts."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "big") + content)
    return found.hexdigest()


# the whole record, and the comparison of two


def measured(names: Collection[str]) -> Record:
    """The record of these cases, and of those that they need."""
    wanted = {*names, *(NEEDS[name] for name in names if name in NEEDS)}
    with tempfile.TemporaryDirectory(prefix="same_numbers_") as folder:
        found = in_parallel([name for name in CASES if name in wanted], Path(folder).resolve())
    parts = ((f"{case}/{name}", value) for case in found for name, value in found[case].items())
    return dict(sorted(part for part in parts if case_of(part[0]) in names))


def in_parallel(names: Collection[str], folder: Path) -> dict[str, Record]:
    """The records by case; a case waits for the one it needs, which was started before it."""
    futures: dict[str, Future[Record]] = {}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for name in names:
            needed = futures.get(NEEDS.get(name, ""))
            futures[name] = pool.submit(timed, name, folder, needed)
    return {name: future.result() for name, future in futures.items()}


def timed(name: str, folder: Path, needed: "Future[Record] | None") -> Record:
    """Run one case in a folder of its own, and log how long it took."""
    if needed is not None:
        needed.result()
    began = time.perf_counter()
    found = CASES[name](folder / name)
    log.info("%s: %.0f s", name, time.perf_counter() - began)
    return found


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """A line for every name whose value is another one, or which one record lacks."""
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        if before != after:
            yield f"{name}\n  old {before}\n  new {after}\n"


def case_of(name: str) -> str:
    """The case that a name of a record belongs to."""
    return name.partition("/")[0]


def compared(old: Path, new: Record, names: Collection[str]) -> int:
    """Tell the differences of these cases; the exit code."""
    kept = json.loads(old.read_text(encoding="utf-8"))
    found = list(differences({k: v for k, v in kept.items() if case_of(k) in names}, new))
    sys.stdout.write("".join(found))
    log.info("%d names compared, %d differ", len(new), len(found))
    return 1 if found else 0


def words() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="write the record")
    what.add_argument("--against", type=Path, help="compare with this record; write nothing")
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="this case alone")
    return parser


def main() -> int:
    """Measure, then write or compare; returns the exit code."""
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
