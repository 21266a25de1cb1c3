"""Tests of the example with a CSV in the format of the study."""

import csv
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from robust_fin.market.synthetic import synthetic_market
from robust_fin.runs.run import Run
from tests.bars import config, instantiate
from tests.conftest import ROOT
from tests.docs.blocks import Command, blocks_of
from tests.docs.rules import rules_of
from tests.docs.workshop import run_command, shell

pytestmark = pytest.mark.docs

PAGE = "docs/study_csv.md"


@pytest.fixture(scope="module")
def make_csv() -> ModuleType:
    path = ROOT / "examples" / "study_csv" / "make_csv.py"
    spec = importlib.util.spec_from_file_location("make_csv", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown_lines() -> list[str]:
    return next(one for one in blocks_of(PAGE) if one.kind == "csv").text.splitlines()


def test_csv_has_the_documented_columns_and_the_synthetic_bars(
    make_csv: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "es.csv"
    make_csv.main([str(file), "--rows=2000", "--seed=3", "--signal=0"])
    assert capsys.readouterr().out == f"2,000 bars of 1 contracts: {file}\n"
    with file.open(encoding="utf-8") as lines:
        assert next(csv.reader(lines)) == shown_lines()[0].split(",")
    loaded = instantiate(config(f"source.path={file}", "source.timezone=UTC").source).load()
    made = synthetic_market(2000, seed=3).bars
    names = ["time", "open", "high", "low", "close", "volume", "vix"]
    pd.testing.assert_frame_equal(loaded.table[names], made[names])
    assert loaded.reports["share of session labels the calendar contradicts"] == 0.0


def test_default_csv_begins_with_the_documented_lines(make_csv: ModuleType) -> None:
    made = make_csv.study_table(2_000, signal=0.05, seed=0)
    stamps = [line.split(",")[0] for line in shown_lines()[1:]]
    assert made["date"].head(len(stamps)).tolist() == stamps
    ticks = made[["open", "high", "low", "close"]].to_numpy() / 0.25
    np.testing.assert_array_equal(ticks, np.round(ticks))


def commands_after_the_install() -> list[Command]:
    install, *commands = next(one for one in blocks_of(PAGE) if one.kind == "sh").commands()
    assert "pip install" in install.text  # not run: the package is installed already
    assert len(commands) == 4
    return commands


def test_five_commands_on_few_bars_end_with_the_verdict_of_the_run(tmp_path: Path) -> None:
    said = []
    for command in commands_after_the_install():
        (rule,) = rules_of(command)
        code, text = run_command(command, rule.words(command), tmp_path)
        assert code == 0, text[-3000:]
        said.append(" ".join(text.split()))
    made, checked, trained, evaluated = said
    assert "14,000 bars of" in made
    assert "No leak" in checked
    verdict = " ".join(Run.open(tmp_path / "run").verdict.split())
    assert verdict
    assert verdict in trained
    assert verdict in evaluated


@pytest.mark.slow
def test_five_commands_lead_from_an_empty_folder_to_a_verdict(tmp_path: Path) -> None:
    said = [shell(command.text, tmp_path) for command in commands_after_the_install()]
    assert [(one.returncode, one.stderr[-500:]) for one in said if one.returncode] == []
    made, checked, trained, evaluated = (one.stdout for one in said)
    assert "120,000 bars of 2 contracts" in made
    assert (tmp_path / "es.csv").read_text(encoding="utf-8").splitlines()[:3] == shown_lines()
    assert "No leak" in checked
    verdict = re.compile(r"No skill over the constant.*the forecasts do order the outcomes", re.S)
    assert verdict.search(" ".join(trained.split()))
    assert verdict.search(" ".join(evaluated.split()))
    assert (tmp_path / "run" / "metrics.json").is_file()
