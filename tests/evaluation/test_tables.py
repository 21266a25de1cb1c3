"""The summary table matches metrics.json and the judgement."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from robust_fin.evaluation.significance import Judgement, judge
from robust_fin.evaluation.tables import summary_table
from robust_fin.evaluation.verdict import format_interval, format_percent_interval

METRICS = {
    "parameters": 299, "steps": 1500, "fit_seconds": 3.2, "steps_per_second": 468.7,
    "test_rows": 2000, "test/loss": 0.0148, "baseline/constant/loss": 0.0151,
    "baseline/ridge/loss": 0.0149, "val/loss": 0.015, "val/skill": 0.012, "val/rank_ic": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def judgement() -> Judgement:
    random = np.random.default_rng(0)
    dates = np.repeat(pd.date_range("2024-01-02", periods=20, freq="B"), 100)
    outcome = random.standard_normal(dates.size)
    target = outcome.argsort().argsort() / (outcome.size - 1)
    signal = 0.5 + 0.1 * (target - 0.5) + 0.01 * random.standard_normal(dates.size)
    scores = {"net": signal, "constant": np.full(dates.size, 0.5), "ridge": 0.5 + 0 * target}
    shared = pd.DataFrame({"trading_date": dates, "target": target, "outcome": outcome})
    shared["time"] = pd.date_range("2024-01-02", periods=dates.size, freq="1min", tz="UTC")
    shared["contract"] = "XXH24"
    tables = [shared.assign(model=name, score=score) for name, score in scores.items()]
    return judge(pd.concat(tables, ignore_index=True), draws=200)


def printed(judgement: Judgement, **more: float) -> list[str]:
    out = io.StringIO()
    table = summary_table(METRICS | more, judgement, title="top5 on es.parquet")
    Console(file=out, width=120).print(table)
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


def test_summary_has_net_baselines_differences_and_val(judgement: Judgement) -> None:
    lines = printed(judgement)
    net, ridge = judgement.net, judgement.against["ridge"]
    assert lines[:2] == [
        "top5 on es.parquet",
        "299 parameters, 1,500 steps in 3 s (469 per second); 2,000 test rows on 20 trading dates",
    ]
    assert (
        f"net 0.0148 {format_percent_interval(net.skill)} {format_interval(net.rank_ic)}" in lines
    )
    assert "constant 0.0151 +0.000 % [+0.000, +0.000] none" in lines
    assert f"net vs ridge {format_percent_interval(ridge.skill)} none" in lines
    assert "net on val 0.015 +1.200 % 0.1000" in lines
    assert f"ICIR {format_interval(net.icir, digits=3)}" in " ".join(lines[-3:])
    assert net.skill.low > 0  # so that the case is one of skill


def test_summary_has_a_row_for_members(judgement: Judgement) -> None:
    members = {
        "members": 3, "members/test/loss_mean": 0.0152, "members/test/skill_mean": 0.01,
        "members/test/skill_low": -0.01, "members/test/skill_high": 0.02,
        "members/test/rank_ic_mean": 0.05, "members/test/rank_ic_low": 0.04,
        "members/test/rank_ic_high": 0.06,
    }  # fmt: skip
    lines = printed(judgement, **members)
    assert lines[1].startswith("3 nets of 299 parameters")
    told = "0.0152 +1.000 % [-1.000, +2.000] 0.0500 [0.0400, 0.0600]"
    assert f"single members: mean, 95 % range {told}" in lines
