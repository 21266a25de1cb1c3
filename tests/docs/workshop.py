"""Folders in which the commands of a page run: with bars, runs and the files of the page."""

import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from robust_fin import train
from robust_fin.market.synthetic import synthetic_market
from tests.conftest import ROOT
from tests.docs.blocks import Command, files_of
from tests.docs.rules import QUIET

ROWS = 45_000  # a month and a roll: rich features need 20 trading dates
DOCUMENTED = "outputs/top5/2026-01-31_10-00-00"
COPIES = {  # documented folder -> folder of the store
    DOCUMENTED: "first",
    f"{DOCUMENTED}_sweep": "sweep",
    "A": "first",
    "run": "first",
    "B": "second",
    "study": "second",
    "wild": "wild",
}
SHORT = (*QUIET, "+experiment=top5", "engine=plain", "trainer.max_epochs=1")
PROGRAMS = {"python": "", "python3.11": "", "robust-fin": "-m robust_fin"}
PATIENCE = 300.0  # seconds a command
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["robust_fin.train", "tests.small_runs"])


def make_store(folder: Path) -> None:
    """Make bars in all documented formats, runs, a sweep, and the record of a non-finite step."""
    folder.mkdir()
    bars = synthetic_market(ROWS, seed=5, signal=0.2, start="2022-02-20").bars
    bars.to_parquet(folder / "es.parquet", index=False)
    bars.iloc[-ROWS // 2 :].to_parquet(folder / "new.parquet", index=False)
    _write_csvs(bars, folder)
    source = f"source.path={folder / 'es.parquet'}"
    for run, words in (("first", ()), ("second", ("seed=1",))):
        assert train.main([*SHORT, source, f"hydra.run.dir={folder / run}", *words]) == 0
    swept = (*SHORT, source, "seed=0,1", f"hydra.sweep.dir={folder / 'sweep'}", "-m")
    assert train.main(swept) == 0
    wild = ("optimizer.lr=1e30", "trainer.gradient_clip_val=null", f"hydra.run.dir={folder}/wild")
    assert train.main([*SHORT, source, *wild]) == 1


def _write_csvs(bars: pd.DataFrame, folder: Path) -> None:
    naive = bars.assign(date=bars["time"].dt.strftime("%Y-%m-%d %H:%M:%S")).drop(columns="time")
    for name in ("es.csv", "bars.csv"):
        naive.to_csv(folder / name, index=False)
    days = pd.date_range("2022-01-03", "2022-06-30", freq="B")
    closes = [20 + number % 7 for number in range(len(days))]
    pd.DataFrame({"date": days, "close": closes}).to_csv(folder / "vix.csv", index=False)


def furnish(folder: Path, store: Path, page: str) -> None:
    """Create the files and runs that the commands of a page use."""
    for name in ("es.parquet", "new.parquet", "es.csv", "bars.csv", "vix.csv"):
        (folder / name).symlink_to(store / name)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    for name, source in COPIES.items():
        shutil.copytree(store / source, folder / name)
    for record in (folder / "wild" / "nonfinite").glob("*"):
        (folder / "FILE").symlink_to(record)
    chosen = folder / "outputs" / "select" / "..." / "features.txt"
    chosen.parent.mkdir(parents=True)
    chosen.write_text("features.names=[close_change_pct,vwap]", encoding="utf-8")
    for name, text in files_of(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def run_command(command: Command, appended: Sequence[str], folder: Path) -> tuple[int, str]:
    """Run a command in a folder: robust_fin in a forked process, other commands in a shell.

    Returns:
        The exit code and the output.
    """
    if command.verb is None or re.search(r"[$;|<>]|&&", command.text):
        text = " ".join([command.text, *(f"'{word}'" for word in appended)])
        done = shell(text, folder)
        return done.returncode, done.stdout + done.stderr
    log = folder / "output.txt"
    words = [*command.given, *appended]
    process = _SERVER.Process(target=_run_verb, args=(command.verb, words, str(folder), str(log)))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode is not None, f"{command.text} took more than {PATIENCE} s"
    return process.exitcode, log.read_text(encoding="utf-8", errors="replace")


def _run_verb(verb: str, words: list[str], folder: str, log: str) -> None:
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.update(_variables(Path(folder)), PYTHONPATH=os.pathsep.join([folder, str(ROOT)]))
    sys.path.insert(0, folder)
    sys.exit(importlib.import_module(f"robust_fin.{verb}").main(words))


def _variables(folder: Path) -> dict[str, str]:
    ledger = str(folder / "trials.jsonl")
    return {"ROBUST_FIN": str(ROOT), "ROBUST_FIN_LEDGER": ledger, "OMP_NUM_THREADS": "1"}


def shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command unchanged in a shell, with the Python of this process."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name, words in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    given = {**os.environ, **_variables(folder), "PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", text], cwd=folder, env=given, text=True, capture_output=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
