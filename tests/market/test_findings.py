"""Each disagreement stops, names an option, and that option resolves it."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robust_fin.data.targets import ForwardReturn
from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.calendar import TradingCalendar
from robust_fin.market.intake.findings import CHECKS
from robust_fin.market.intake.forms import SPREADS
from robust_fin.market.schema import bar_starts
from robust_fin.market.sources import Bars, BarSource

SETTINGS = {
    "synthetic": partial(pytest.fail, "a path is set, so no synthetic bars are wanted"),
    "timezone": None,
    "time_format": None,
    "decimal": None,
    "columns": None,
    "stamp": "start",
    "bar": "15min",
    "fraction": 1.0,
    "vix_path": None,
    "calendar": "CME_Equity",
    "calendar_overrides": None,
    "block_rows": None,
    "spikes": None,
    "product": None,
    "accept": (),
    "root": "ES",
    "tick": 0.25,
}


def session_bars(first: str = "2024-02-01", last: str = "2024-04-12") -> pd.DataFrame:
    """Fifteen-minute bars of ESM24 that fill the sessions of CME_Equity."""
    sessions = TradingCalendar.named("CME_Equity").sessions(first, last)
    spans = [
        pd.date_range(row.open, row.close, freq="15min", inclusive="left")
        for row in sessions.itertuples()
    ]
    time = spans[0].append(spans[1:]).as_unit("ns")
    random = np.random.default_rng(0)
    close = 5000 + 0.25 * np.cumsum(random.integers(-3, 4, time.size))
    prices = {"open": close, "high": close, "low": close, "close": close}
    return pd.DataFrame({"time": time, **prices, "volume": 5.0, "contract": "ESM24"})


def load(table: pd.DataFrame, folder: Path, **settings: Any) -> Bars:
    path = folder / "es.parquet"
    table.to_parquet(path, index=False)
    known = BarSource.__dataclass_fields__
    chosen = {name: value for name, value in (SETTINGS | settings).items() if name in known}
    return BarSource(path=str(path), **chosen).load()


def in_zone(table: pd.DataFrame, zone: str) -> pd.DataFrame:
    """The table with wall-clock times of a zone and no offset."""
    return table.assign(time=table["time"].dt.tz_convert(zone).dt.tz_localize(None))


def with_contract(table: pd.DataFrame, code: str) -> pd.DataFrame:
    """The table with the second half of its rows under another code."""
    later = np.arange(len(table)) >= len(table) // 2
    return table.assign(contract=np.where(later, code, table["contract"]))


def test_bars_that_agree_have_no_disagreement(tmp_path: Path) -> None:
    bars = load(session_bars(), tmp_path)
    assert {row.agreement for row in bars.findings.rows} <= {"agrees", ""}
    facts = {"bar": "15min", "product": "ES", "accepted": [], "warnings": []}
    assert bars.summary().facts == facts


CASES: dict[str, tuple[Any, dict[str, Any], str, dict[str, Any]]] = {
    "bar": (lambda t: t, {"bar": "1min"}, "source.bar=15min", {"bar": "15min"}),
    "zone": (
        lambda t: in_zone(t, "America/Chicago"),
        {"timezone": "UTC"},
        "source.timezone=America/Chicago",
        {"timezone": "America/Chicago"},
    ),
    "stamp": (
        lambda t: t.assign(time=t["time"] + pd.Timedelta("15min")),
        {},
        "source.stamp=end",
        {"stamp": "end"},
    ),
    "calendar": (
        lambda t: t,
        {"calendar": "NYSE"},
        "source.calendar=CME_Rate",
        {"calendar": "CME_Rate"},
    ),
    "products": (
        lambda t: with_contract(t, "NQM24"),
        {},
        "source.product=ES",
        {"product": "ES"},
    ),
    "tick": (
        lambda t: t.assign(**{name: t[name] * 0.4 for name in ("open", "high", "low", "close")}),
        {},
        "instrument.tick=0.1",
        {"tick": 0.1},
    ),
}


@pytest.mark.parametrize("check", CASES)
def test_disagreement_stops_and_its_option_resolves_it(check: str, tmp_path: Path) -> None:
    spoil, settings, option, resolved = CASES[check]
    table = spoil(session_bars())
    with pytest.raises(SchemaError) as caught:
        load(table, tmp_path, **settings)
    assert "es.parquet contradicts its settings" in str(caught.value)
    assert f"Write {option}" in str(caught.value)
    assert f"source.accept=[{check}]" in str(caught.value)
    bars = load(table, tmp_path, **(settings | resolved))
    assert check not in [row.check for row in bars.findings.select("differs")]
    (accepted,) = load(table, tmp_path, **settings, accept=[check]).summary().accepted
    assert "configured: " in accepted


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("clock", "1 week off by"),
        ("scale", "1 jump by a factor of "),
        ("holes", "ESM24 is silent from 2024-03-01 to 2034-01-31"),
    ],
)
def test_fault_of_the_file_itself_can_only_be_accepted(
    check: str, words: str, tmp_path: Path
) -> None:
    table = session_bars()
    if check == "clock":
        week = table["time"].between("2024-03-16", "2024-03-23")
        table.loc[week, "time"] += pd.Timedelta("1h")
    elif check == "scale":
        table.loc[table.index >= 2000, ["open", "high", "low", "close"]] *= 100
    else:
        parts = [session_bars(last="2024-03-01"), session_bars("2034-02-01", "2034-03-01")]
        table = pd.concat(parts, ignore_index=True)
    with pytest.raises(SchemaError, match=words):
        load(table, tmp_path)
    (accepted,) = load(table, tmp_path, accept=[check]).summary().accepted
    assert words in accepted


def test_rows_of_other_products_and_spreads_are_counted(tmp_path: Path) -> None:
    table = session_bars()
    spread = table.iloc[:7].assign(contract="ESM24-ESU24", low=-9.0)
    other = table.iloc[:5].assign(contract="NQM24")
    bars = load(pd.concat([table, spread, other]), tmp_path, product="ES")
    assert bars.dropped == {SPREADS: 7, "other products than source.product": 5}
    assert bars.rows_in == len(table) + 12
    with pytest.raises(ConfigError, match=r"source.product=GC is not in es.parquet; it holds ES"):
        load(table, tmp_path, product="GC")


@pytest.mark.parametrize(
    ("code", "contracts"),
    [("ESH4", ["ESH2014", "ESH2024"]), ("ESH14", ["ESH14"]), ("ESH", ["ESH"])],
)
def test_contracts_ten_years_apart_are_two_if_the_code_can_mean_both(
    code: str, contracts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = [session_bars(f"{year}-02-03", f"{year}-03-07") for year in (2014, 2024)]
    table = pd.concat(parts, ignore_index=True).assign(contract=code)
    later = len(parts[0])
    prices = ["open", "high", "low", "close"]
    table.loc[table.index < later, prices] -= 3000  # prices may double in ten years
    with caplog.at_level("INFO"):
        bars = load(table, tmp_path, accept=["holes"])
    assert bars.table["contract"].cat.categories.tolist() == contracts
    assert (bars.table["contract"] == contracts[0]).sum() == later if len(contracts) == 2 else True
    stopped = [row.subject for row in bars.findings.rows if row.agreement == "accepted"]
    assert stopped == ([] if len(contracts) == 2 else ["silent contracts"])
    assert (f"{code} is the contracts ESH2014, ESH2024" in caplog.text) == (len(contracts) == 2)


def test_unknown_check_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names hole, which is no check; the checks are bar"):
        load(session_bars(), tmp_path, accept=["hole"])
    load(session_bars(), tmp_path, accept=CHECKS)


def test_little_data_stops_nothing_about_the_clock(tmp_path: Path) -> None:
    table = in_zone(session_bars(last="2024-02-12"), "America/Chicago")
    bars = load(table, tmp_path, timezone="UTC")
    unknown = [row.check for row in bars.findings.select("unknown")]
    assert unknown[:4] == ["zone", "clock", "stamp", "calendar"]


def test_a_window_of_20_days_is_judged(tmp_path: Path) -> None:
    table = session_bars("2024-02-02", "2024-02-21")  # 17 UTC days with bars, a holiday among them
    bars = load(table, tmp_path)
    assert {row.agreement for row in bars.findings.rows} <= {"agrees", ""}
    with pytest.raises(SchemaError, match=r"time zone: America/Chicago leaves 0\.00 %"):
        load(in_zone(table, "America/Chicago"), tmp_path, timezone="UTC")
    table.loc[table["time"] >= "2024-02-11", "time"] += pd.Timedelta("1h")
    with pytest.raises(SchemaError, match="clock shifts: 2 weeks off by"):
        load(table, tmp_path)


def test_accepted_bar_length_lets_no_label_end_early(tmp_path: Path) -> None:
    bars = load(session_bars(), tmp_path, bar="1min", accept=["bar"])
    assert bars.bar == pd.Timedelta("15min")
    labels = ForwardReturn(horizon=1, max_gap=None).label(bars.table, bar=bars.bar)
    ends = bar_starts(bars.table) + np.timedelta64(15, "m")
    assert (labels.label_end[:-1] == ends[1:]).all()
