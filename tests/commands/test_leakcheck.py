"""The command leakcheck on correct features and on leaks under names that do not reveal them."""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from robust_fin import leakcheck
from robust_fin.features.registry import FEATURES
from robust_fin.leaks.checks import checkable_features
from robust_fin.market import labelling
from tests.bars import synthetic_bars
from tests.planted_leaks import last_close_upto, registry

IDEAS = '''
import numpy as np
import pandas as pd

from robust_fin.features.registry import BARS, Lookback, feature


@feature(lookback=Lookback(20, BARS), unit="fraction")
def drift_20bar(bars: pd.DataFrame) -> pd.Series:
    """Mean of the last 20 returns, without a leak."""
    return bars["close"].pct_change().rolling(20).mean()


@feature(lookback=Lookback(10, BARS), unit="log return")
def drift_10bar(bars: pd.DataFrame) -> pd.Series:
    """Mean over a centered window."""
    return np.log(bars["close"]).diff().rolling(11, center=True).mean()


@feature(lookback=Lookback(0, BARS), unit="fraction")
def tilt(bars: pd.DataFrame) -> pd.Series:
    """Return of the next bar."""
    return bars["close"].shift(-1) / bars["close"] - 1
'''
SMALL = ("+experiment=smoke", "leaks.cuts=2")

Output = tuple[int, str, str]


@pytest.fixture
def ideas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put a user module with features on the path."""
    (tmp_path / "ideas.py").write_text(IDEAS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with registry():
        yield "features.modules=[ideas]"
    sys.modules.pop("ideas", None)


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    """Return a function that gives the exit code, stdout and stderr of the command."""

    def run(*words: str) -> Output:
        code = leakcheck.main([*SMALL, *words])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_without_leaks_prints_a_table_of_what_was_checked(check, ideas: str) -> None:
    code, out, err = check(ideas, "features.names=[close_change_pct,vwap,drift_20bar]")
    assert (code, err) == (0, "")
    for column in ("close_change_pct", "vwap", "drift_20bar"):
        assert out.count(f" {column} ") == 2  # for later bars and for bars before its lookback
    for column in ("target", "split", "transforms, ranks"):
        assert f" {column} " in out
    assert "No leak: 6 columns, " in out


def test_leak_in_a_user_feature_fails_with_one_message(check, ideas: str) -> None:
    code, out, err = check(ideas, "features.names=[vwap,drift_10bar,drift_20bar,tilt]")
    assert code == 1
    assert "No leak" not in out
    assert err.startswith("error: drift_10bar leaks: its value at bar 202")
    assert "it sees 5 bars (5 minutes) ahead. Compute it from bars up to and including" in err
    assert err.endswith(". Also leaking: tilt\n")
    assert err.count("\n") == 1


def test_every_registered_feature_can_be_checked(ideas: str) -> None:
    assert ideas.endswith("[ideas]")
    importlib.import_module("ideas")
    bars = synthetic_bars(2_000)
    names = checkable_features(bars, ["vwap", "tilt"])
    assert names[:2] == ["vwap", "tilt"]
    assert sorted(names) == sorted(FEATURES)
    without = dataclasses.replace(bars, table=bars.table.drop(columns="vix"))
    lacking = set(names) - set(checkable_features(without, ["vwap"]))
    assert lacking == {"vix", "vix_change_1d"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "split._target_=tests.planted_leaks.PlainHoldout",
            "split, fold 0 leaks: the label of the train ",
        ),
        ("target._target_=tests.planted_leaks.LongReturn", "target leaks: the label at bar 2022-"),
    ],
)
def test_user_split_and_target_are_checked(check, word: str, message: str) -> None:
    start = "source.synthetic.start=2022-03-02"  # the bars roll after 11,000 rows
    code, _, err = check(
        word, "target.horizon=3", f"+{start}", "transform=robust", "split.refit=false"
    )
    assert code == 1
    assert err.startswith(f"error: {message}")
    assert " ahead" in err
    assert err.count("\n") == 1


def test_vix_of_the_bars_file_is_reported_as_unchecked(check) -> None:
    code, out, _ = check("features.names=[vix]", "leaks.cuts=1")
    assert code == 0
    assert out.count(" close_change_pct ") == 2  # read by a baseline, so always checked
    assert "\nvix: not checked, assumed to be known at each bar; source.vix_path joins" in out


def test_vix_close_of_the_same_day_fails(
    check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = pd.bdate_range("2021-12-01", "2022-06-01")
    path = tmp_path / "vix.csv"
    lines = [f"{day:%Y-%m-%d},{15 + number % 9}" for number, day in enumerate(days)]
    path.write_text("date,close\n" + "\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(labelling, "last_close_before", last_close_upto)
    code, _, err = check(f"source.vix_path={path}", "features.names=[vix]")
    assert code == 1
    assert err.startswith("error: vix leaks: bar 202")
    assert "which is known at 15:15 Chicago; it sees " in err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("leaks.cuts=0", "leaks.cuts=0 must be a whole number from 1 to 1000000"),
        ("leaks.depth=3", "leaks.depth is not a key. Keys of leaks:"),
        ("source.path=none.csv", "none.csv"),
    ],
)
def test_wrong_settings_are_reported_without_traceback(check, word: str, message: str) -> None:
    code, _, err = check(word)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("features", ["top5", "study", "rich_vix"])
@pytest.mark.parametrize("split", ["holdout", "walk_forward", "purged_kfold", "cpcv"])
def test_no_leaks_on_real_bars(check, real_data, features: str, split: str) -> None:
    bars, vix = real_data("es_1m_12contracts.parquet"), real_data("vix_daily.csv")
    source = (f"source.path={bars}", "source.timezone=UTC", f"source.vix_path={vix}")
    every = f"leaks.every_feature={features == 'rich_vix'}"
    words = (f"features={features}", f"split={split}", "split.refit=false", "leaks.cuts=8", every)
    code, out, err = check(*source, *words)
    assert (code, err) == (0, "")
    assert "No leak: " in out


def test_warnings_about_the_bars_are_printed(check, tmp_path: Path) -> None:
    bars = synthetic_bars(2000).table[["time", "open", "high", "low", "close", "contract"]]
    bars.assign(volume=0.0).to_parquet(tmp_path / "still.parquet")
    _, out, _ = check(f"source.path={tmp_path}/still.parquet", "features=study")
    assert "still.parquet: volume: 0 in every bar" in out
