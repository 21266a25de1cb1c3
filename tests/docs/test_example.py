"""A CSV of the study's kind, from an empty folder to a verdict in five commands."""

import csv
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from robust_fin.market.synthetic import synthetic_market
from tests.bars import config, instantiate
from tests.conftest import ROOT
from tests.docs.blocks import blocks_of
from tests.docs.workshop import shell

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


def test_the_file_is_as_the_page_shows_it_and_holds_the_market(
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


def test_by_default_it_is_the_file_of_the_page(make_csv: ModuleType) -> None:
    made = make_csv.study_table(2_000, signal=0.05, seed=0)
    stamps = [line.split(",")[0] for line in shown_lines()[1:]]
    assert made["date"].head(len(stamps)).tolist() == stamps
    ticks = made[["open", "high", "low", "close"]].to_numpy() / 0.25
    np.testing.assert_array_equal(ticks, np.round(ticks))


@pytest.mark.slow
def test_from_an_empty_folder_to_a_verdict_in_five_commands(tmp_path: Path) -> None:
    install, *commands = next(one for one in blocks_of(PAGE) if one.kind == "sh").commands()
    assert "pip install" in install.text  # what is installed here already stands in its place
    assert len(commands) == 4
    said = [shell(command.text, tmp_path) for command in commands]
    assert [(one.returncode, one.stderr[-500:]) for one in said if one.returncode] == []
    made, checked, trained, evaluated = (one.stdout for one in said)
    assert "120,000 bars of 2 contracts" in made
    assert (tmp_path / "es.csv").read_text(encoding="utf-8").splitlines()[:3] == shown_lines()
    assert "No leak" in checked
    verdict = re.compile(r"No skill over the constant.*the forecasts do order the outcomes", re.S)
    assert verdict.search(" ".join(trained.split()))
    assert verdict.search(" ".join(evaluated.split()))
    assert (tmp_path / "run" / "metrics.json").is_file()
