"""A user's mistake ends in exit code 1 and one message, and leaves no finished run."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from robust_fin import evaluate, predict, train
from robust_fin.bundle.config import read_config
from robust_fin.runs.schema import USER_ERRORS
from robust_fin.runs.training import load_folds
from tests.bars import config

MakeBars = Callable[..., pd.DataFrame]
Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
ROWS = 900  # bars of 15 minutes, twelve trading dates: more than the five that top5 looks back


@pytest.fixture
def bars(make_bars: MakeBars) -> pd.DataFrame:
    """Bars on which the smoke experiment trains."""
    return make_bars(rows=ROWS, every="15min")


@pytest.fixture(scope="module")
def vix_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose net reads the VIX."""
    run = tmp_path_factory.mktemp("trained") / "run"
    words = [
        "+experiment=smoke",
        "source.synthetic.rows=6000",
        "features.names=[close_change_pct,vix]",
        "split.refit=false",
        "trainer.max_epochs=1",
        f"hydra.run.dir={run}",
    ]
    assert train.main(words) == 0
    return run


def one_message(err: str) -> str:
    """Return the message on stderr, which must be the only one, without a traceback."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if not line.startswith("Error executing job")]
    assert [line[:7] for line in lines if re.match(r"error\b", line, re.IGNORECASE)] == [
        "error: "
    ], err
    assert lines[0].startswith("error: "), err
    return "\n".join(lines).removeprefix("error: ")


def refusal(
    verb: Callable[[list[str]], int], words: list[str], *, folder: Path, capfd: Capture
) -> str:
    """Return the error message of a command; no run under `folder` may look finished."""
    assert verb(words) == 1
    assert list(folder.rglob("metrics.json")) == []
    assert list(folder.rglob("*predictions.parquet")) == []
    return one_message(capfd.readouterr().err)


def smoke(run: Path, *words: str) -> list[str]:
    return ["+experiment=smoke", f"hydra.run.dir={run}", *words]


# bar files, by train


class BadBars(NamedTuple):
    """A way to damage a bar table, and the expected parts of the message."""

    spoil: Callable[[pd.DataFrame], pd.DataFrame]
    telling: tuple[str, ...]


def put(column: str, rows: list[int], value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def spoil(bars: pd.DataFrame) -> pd.DataFrame:
        bars = bars.astype({column: "object"})
        bars.loc[rows, column] = value
        return bars

    return spoil


def swapped(bars: pd.DataFrame) -> pd.DataFrame:
    order = np.arange(len(bars))
    order[[20, 21]] = [21, 20]
    return bars.iloc[order]


def constant(bars: pd.DataFrame) -> pd.DataFrame:
    return bars.assign(open=5000.0, high=5000.0, low=5000.0, close=5000.0)


BAD_BARS = {
    "header only": BadBars(lambda bars: bars.iloc[:0], ("es.csv has a header but no rows",)),
    "no close column": BadBars(
        lambda bars: bars.rename(columns={"close": "settle"}),
        ("es.csv has no column for close", "'settle'", "close: close, c, last"),
    ),
    "no volume column": BadBars(
        lambda bars: bars.drop(columns="volume"), ("es.csv has no column for volume",)
    ),
    "two close columns": BadBars(
        lambda bars: bars.assign(Close=1.0), ("['close', 'Close'] all mean close", "keep one")
    ),
    "text in a price column": BadBars(
        put("high", [7, 9], "halted"),
        ("es.csv: high must be a number", "row 7", "high='halted'", f"2 of {ROWS} rows"),
    ),
    "NaN price": BadBars(
        put("close", [5], ""),
        ("close must be a finite number above 0", "row 5", "close=nan", f"1 of {ROWS} rows"),
    ),
    "inf price": BadBars(
        put("open", [5, 6, 7], "inf"),
        ("open must be a finite number above 0", "row 5", "open=inf", f"3 of {ROWS} rows"),
    ),
    "price of zero": BadBars(
        put("low", [0], 0), ("low must be a finite number above 0", "row 0", "low=0.0")
    ),
    "negative volume": BadBars(
        put("volume", [3], -4),
        ("volume must be a finite number of at least 0", "row 3", "volume=-4.0"),
    ),
    "high below low": BadBars(
        put("high", [11], 100.25),
        ("high must not be below low", "row 11", "high=100.25", f"1 of {ROWS} rows"),
    ),
    "close above high": BadBars(
        put("close", [12], 9999.5), ("close must lie between low and high", "close=9999.5")
    ),
    "a time twice": BadBars(
        lambda bars: bars.iloc[[*range(31), *range(30, len(bars))]].assign(
            volume=range(1, len(bars) + 2)
        ),
        ("same time twice", "row 31", "time=2024-03-04 22:30:00+00:00", f"1 of {ROWS + 1} rows"),
    ),
    "unsorted times": BadBars(
        swapped,
        ("times must increase within a contract", "row 21", "time=2024-03-04 20:00:00+00:00"),
    ),
    "stamps without zone": BadBars(
        lambda bars: bars.assign(time=bars["time"].dt.tz_localize(None)),
        (
            "es.csv: the timestamps have no time zone (first: 2024-03-04 15:00:00)",
            "source.timezone=UTC",
        ),
    ),
    "stamps that are none": BadBars(
        put("time", [4], "yesterday"),
        ("es.csv: row 4 has the time 'yesterday', which cannot be read", f"1 of {ROWS} rows"),
    ),
    "fewer rows than the longest lookback": BadBars(
        lambda bars: bars.iloc[:300],
        ("no row has all features", "holds 300 bars on 4 trading dates", "5 trading dates before"),
    ),
    "one row": BadBars(
        lambda bars: bars.iloc[:1], ("no row has all features", "holds 1 bars on 1 trading dates")
    ),
    "a constant price": BadBars(constant, ("close_change_pct",)),
}


# of each stage that reads the table: columns, values, features, targets
BY_TRAIN = ("no close column", "high below low", "one row", "a constant price")


@pytest.mark.parametrize("name", BY_TRAIN)
def test_train_rejects_bad_bars(
    bars: pd.DataFrame, tmp_path: Path, capfd: Capture, name: str
) -> None:
    case = BAD_BARS[name]
    path = tmp_path / "es.csv"
    case.spoil(bars).to_csv(path, index=False)
    words = smoke(tmp_path / "run", f"source.path={path}", "source.bar=15min")
    message = refusal(train.main, words, folder=tmp_path, capfd=capfd)
    assert [words for words in case.telling if words not in message] == []


def test_bad_bars_of_every_kind_are_refused(bars: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "es.csv"
    words = (f"source.path={path}", "source.bar=15min", "cache.folder=null")
    settings = config("+experiment=smoke", *words)
    for name, case in BAD_BARS.items():
        case.spoil(bars).to_csv(path, index=False)
        with pytest.raises(USER_ERRORS) as caught:
            load_folds(settings)
        assert [words for words in case.telling if words not in str(caught.value)] == [], name


def test_bars_before_the_damage_are_valid(bars: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "es.csv"
    bars.to_csv(path, index=False)
    quick = (
        "source.bar=15min",
        "trainer.max_epochs=1",
        "split.refit=false",
        "batch_size=64",
        "schedule.warmup=2",
    )
    assert train.main(smoke(tmp_path / "run", f"source.path={path}", *quick)) == 0
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("name", "content", "telling"),
    [
        ("gone.csv", None, "there is no file {path}; set source.path"),
        ("es.csv", "", "{path} is empty"),
        ("es.xlsx", "time,open", "{path} has the extension .xlsx; use .csv or .parquet"),
        ("es", "time,open", "{path} has no extension"),
        ("es.parquet", "time,open", "{path} cannot be read as .parquet"),
        ("es.csv.gz", "time,open", "{path} cannot be read as .csv"),
    ],
)
def test_train_rejects_files_that_hold_no_bars(
    tmp_path: Path, capfd: Capture, name: str, content: str | None, telling: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    words = smoke(tmp_path / "run", f"source.path={path}")
    message = refusal(train.main, words, folder=tmp_path, capfd=capfd)
    assert telling.format(path=path) in message


# settings, by train


@pytest.mark.parametrize(
    ("word", "telling"),
    [
        (
            "+model.use_residual=true",
            "model.use_residual is not a key; did you mean model.residual?",
        ),
        ("seed=-1", "seed=-1 must be a whole number from 0 to 4294967295"),
        ("trainer.gradient_clip_val=-1", "must be a number of at least 0 or null"),
        ("model=transformer", "model=transformer does not exist. Choices: plain_mlp, prenorm_mlp"),
        (
            "features.names=[close_change_pct,moon]",
            "there is no feature moon; registered features",
        ),
        ("features.names=[vwap,vwap]", "features.names=['vwap', 'vwap'] must name each"),
        ("source.stamp=middle", "source.stamp=middle must be start or end"),
        ("source.fraction=1.5", "source.fraction=1.5 must be a number in (0, 1]"),
        ("source.bar=often", "source.bar=often must be a pandas offset"),
        ("source.calendar=CME_Equities", "source.calendar='CME_Equities' is not a calendar"),
        ("source.vix_path=gone.csv", "no VIX file at gone.csv"),
        ("target.horizon=0", "target.horizon=0 must be a whole number from 1 to 1000000"),
    ],
)
def test_train_rejects_wrong_settings(
    tmp_path: Path, capfd: Capture, word: str, telling: str
) -> None:
    words = smoke(tmp_path / "run", "source.synthetic.rows=9000", word)
    message = refusal(train.main, words, folder=tmp_path, capfd=capfd)
    assert telling in message


def test_train_rejects_an_unknown_experiment(tmp_path: Path, capfd: Capture) -> None:
    words = ["+experiment=moonshot", f"hydra.run.dir={tmp_path / 'run'}"]
    message = refusal(train.main, words, folder=tmp_path, capfd=capfd)
    assert "+experiment=moonshot does not exist. Choices: " in message
    assert [name for name in ("smoke", "study", "top5") if name not in message] == []


# run folders: resume, predict, evaluate


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        *(("resume", "empty"), ("predict", "gone"), ("compare", "file")),
        *(("evaluate", name) for name in ("gone", "empty", "file")),
    ],
)
def test_folder_that_is_not_a_run_is_an_error(
    tmp_path: Path, capfd: Capture, verb: str, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    folder, out = tmp_path / name, tmp_path / "out.parquet"
    main, words = {
        "resume": (train.main, [f"resume={folder}"]),
        "predict": (predict.main, [f"run={folder}", f"out={out}"]),
        "evaluate": (evaluate.main, [f"run={folder}"]),
        "compare": (evaluate.main, [f"run=[{folder},{folder}]"]),
    }[verb]
    message = refusal(main, words, folder=tmp_path, capfd=capfd)
    assert f"{folder} is not a run folder: it has no bundle/config.yaml" in message
    assert not out.exists()
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    "word", ["optimizer.lr=1", "+experiment=smoke", "trainer.accelerator=cpu", "seed=1"]
)
def test_resume_rejects_other_settings(
    vix_run: Path, tmp_path: Path, capfd: Capture, word: str
) -> None:
    before = (vix_run / "metrics.json").read_bytes()
    words = [f"resume={vix_run}", "trainer.max_epochs=2", word]
    message = refusal(train.main, words, folder=tmp_path, capfd=capfd)
    assert f"{word} cannot be changed on resume; only trainer.max_epochs" in message
    assert (vix_run / "metrics.json").read_bytes() == before
    assert read_config(vix_run).trainer.max_epochs == 1


def test_predict_rejects_bars_without_a_needed_column(
    vix_run: Path, make_bars: MakeBars, tmp_path: Path, capfd: Capture
) -> None:
    path, out = tmp_path / "es.csv", tmp_path / "out.parquet"
    bars = make_bars(rows=ROWS)
    bars.to_csv(path, index=False)
    words = [f"run={vix_run}", f"source.path={path}", f"out={out}"]
    message = refusal(predict.main, words, folder=tmp_path, capfd=capfd)
    assert "feature vix needs the column vix" in message
    assert "source.vix_path=FILE" in message
    assert not out.exists()
    bars.assign(vix=15.0).to_csv(path, index=False)
    assert predict.main(words) == 0
    assert len(pd.read_parquet(out)) == ROWS - 1


def test_predict_rejects_bars_of_another_length_or_product(
    vix_run: Path, make_bars: MakeBars, tmp_path: Path, capfd: Capture
) -> None:
    path, out = tmp_path / "new.csv", tmp_path / "out.parquet"
    words = [f"run={vix_run}", f"source.path={path}", f"out={out}"]
    make_bars(rows=ROWS, every="5min").assign(vix=15.0).to_csv(path, index=False)
    message = refusal(predict.main, words, folder=tmp_path, capfd=capfd)
    assert "bar length: 5min; configured: 1min. Write source.bar=5min" in message
    message = refusal(predict.main, [*words, "source.bar=5min"], folder=tmp_path, capfd=capfd)
    assert "has bars of 5min, but the run was trained on bars of 1min" in message
    assert predict.main([*words, "source.bar=5min", "source.accept=[bar]"]) == 0
    out.unlink()
    make_bars(rows=ROWS, contract="NQH24").assign(vix=15.0).to_csv(path, index=False)
    message = refusal(predict.main, words, folder=tmp_path, capfd=capfd)
    assert "holds NQ, but the run was trained on ES" in message
    assert predict.main([*words, "source.accept=[products]"]) == 0


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (["source.path=gone.csv", "out={out}"], "there is no file gone.csv"),
        (["source.path={bad}", "out={out}"], "bad.csv: close must be a finite number above 0"),
        (["source.path={bad}", "out=scores.csv"], "out=scores.csv must end in .parquet"),
        (["source.path={bad}"], "Missing mandatory value: out"),
        (["source.file={bad}", "out={out}"], "source.file is not a key"),
        (["source.path={bad}", "out={out}", "batch_size=3"], "batch_size is not a key"),
    ],
)
def test_predict_rejects_wrong_settings(
    vix_run: Path,
    bars: pd.DataFrame,
    tmp_path: Path,
    capfd: Capture,
    words: list[str],
    telling: str,
) -> None:
    bad, out = tmp_path / "bad.csv", tmp_path / "out.parquet"
    put("close", [5], "inf")(bars).to_csv(bad, index=False)
    given = [f"run={vix_run}", *(word.format(bad=bad, out=out) for word in words)]
    message = refusal(predict.main, given, folder=tmp_path, capfd=capfd)
    assert telling in message
    assert not out.exists()


def unfinished(run: Path, folder: Path) -> Path:
    """Return a copy of the run as an interrupted run would leave its bundle."""
    (folder / "bundle").mkdir(parents=True)
    config = (run / "bundle" / "config.yaml").read_text(encoding="utf-8")
    (folder / "bundle" / "config.yaml").write_text(config, encoding="utf-8")
    return folder


def test_evaluate_and_predict_reject_an_unfinished_run(
    vix_run: Path, tmp_path: Path, capfd: Capture
) -> None:
    run = unfinished(vix_run, tmp_path / "half")
    message = refusal(evaluate.main, [f"run={run}"], folder=tmp_path, capfd=capfd)
    assert f"{run} has no metrics.json: the run has not finished" in message
    assert f"resume={run}" in message
    message = refusal(evaluate.main, [f"run=[{vix_run},{run}]"], folder=tmp_path, capfd=capfd)
    assert f"{run} has no metrics.json" in message
    words = [f"run={run}", f"out={tmp_path / 'out.parquet'}"]
    message = refusal(predict.main, words, folder=tmp_path, capfd=capfd)
    assert f"{run / 'bundle'} is not a whole bundle" in message


def test_predict_rejects_a_damaged_bundle(vix_run: Path, tmp_path: Path, capfd: Capture) -> None:
    run = unfinished(vix_run, tmp_path / "half")
    (run / "bundle" / "model.safetensors").write_bytes(b"no weights")
    words = [f"run={run}", f"out={tmp_path / 'out.parquet'}"]
    message = refusal(predict.main, words, folder=tmp_path, capfd=capfd)
    assert f"{run / 'bundle'} is not a whole bundle" in message


# the same from a shell


@pytest.mark.parametrize(
    ("verb", "words", "telling"),
    [
        ("train", ["+experiment=smoke", "source.path=gone.csv"], "there is no file gone.csv"),
        pytest.param(
            *("predict", ["run=gone", "out=out.parquet"], "gone is not a run folder"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_shell_gets_one_message_and_exit_code_1(
    tmp_path: Path, verb: str, words: list[str], telling: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"robust_fin.{verb}", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert telling in one_message(done.stderr)
    assert "Traceback" not in done.stdout
    assert list(tmp_path.rglob("metrics.json")) == []
