import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_fin import evaluate
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.report import report
from robust_fin.evaluation.report.page import STYLE
from robust_fin.evaluation.report.report import is_success
from robust_fin.evaluation.verdict import (
    format_interval,
    format_number,
    format_percent,
    format_percent_interval,
    model_label,
    verdict,
)
from robust_fin.metrics import rank_ic
from robust_fin.runs.results import publish
from tests.evaluation.boards import EVERYTHING, Board
from tests.evaluation.pages import Page
from tests.evaluation.run_folders import scored, write_run
from tests.small_runs import run_training

SMALL = ("features=study", "source.synthetic.rows=4000", "batch_size=64", "trainer.max_epochs=1")
PICTURES = ["months", "hours", "calibration", "path", "members", "losses", "norms"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object, dict[str, float]]:
    """Write the report of a population; return its folder, judgement and metrics."""
    run = tmp_path_factory.mktemp("runs") / "planted"
    return (run, *write_run(run, scored(strength=0.2), members=16))


@pytest.fixture(scope="module")
def page(planted: tuple[Path, object, dict[str, float]]) -> Page:
    return Page.read(planted[0] / "report.html")


def test_numbers_are_formatted_with_their_intervals() -> None:
    assert (
        format_percent_interval(Interval(0.02125, 0.01168, 0.02798)) == "+2.125 % [+1.168, +2.798]"
    )
    assert format_interval(Interval(-0.00001, -0.2, 0.1), digits=3) == "0.000 [-0.200, 0.100]"
    nan = float("nan")
    assert format_percent_interval(Interval(0.5, nan, nan)) == "+50.000 % [none]"
    assert format_interval(Interval(nan, nan, nan)) == "none"
    assert [format_number(one) for one in (None, nan, 12345, 0.1234567)] == [
        "none", "none", "12,345", "0.123457",
    ]  # fmt: skip
    assert format_percent(None) == "none"


def test_a_planted_signal_is_called_skill(page: Page, planted: tuple) -> None:
    assert [one.text for one in page.all("h1")] == ["Skill"]
    assert page.all("title")[0].text == "Skill: planted, planted"
    (said,) = [one for one in page.all("p") if one.attributes.get("class") == "verdict"]
    assert said.text == verdict(planted[1])
    assert said.text.startswith("Skill ")


def test_only_a_result_above_its_costs_is_marked_as_success(page: Page, planted: tuple) -> None:
    above, below = Interval(3.0, 2.5, 3.5), Interval(0.5, 0.4, 0.6)
    for trade, cost, wanted in ((above, 1.0, True), (below, 1.0, False), (above, math.nan, False)):
        edge = replace(planted[1].edge, trade_ticks=trade, round_trip_ticks=cost)
        assert is_success(replace(planted[1], edge=edge)) is wanted
    (header,) = page.all("header")
    assert header.attributes["class"] == ("success" if is_success(planted[1]) else "no-success")


def test_first_column_of_every_table_is_in_words(page: Page) -> None:
    keys = [cell.text for cell in page.all("th") if re.fullmatch(r"[a-z]+[_/][a-z_/]+", cell.text)]
    assert keys == []


def test_wide_tables_say_that_they_scroll(page: Page) -> None:
    boxes = [one.attributes["class"] for one in page.all("div")]
    assert {"scroll", "scroll wide"} == set(boxes)
    assert ".wide::before" in STYLE.read_text(encoding="utf-8")


def test_pure_noise_is_called_no_skill(tmp_path: Path) -> None:
    result, _ = write_run(tmp_path / "noise", scored(strength=0.0), pictures=False)
    page = Page.read(tmp_path / "noise" / "report.html")
    assert page.all("h1")[0].text == "No skill"
    (said,) = [one.text for one in page.all("p") if one.attributes.get("class") == "verdict"]
    assert said == verdict(result)
    assert said.startswith("No skill")


def test_models_table_matches_metrics_json(page: Page, planted: tuple) -> None:
    metrics = planted[2]
    table = page.table("Test span")
    assert list(table) == ["net", "constant", "minus the last return", "ridge"]
    for name, heading in (("rank_ic", "rank IC"), ("daily_ic", "daily IC")):
        ends = [metrics[f"test/{name}{end}"] for end in ("", "_low", "_high")]
        assert table["net"][heading] == "{:.4f} [{:.4f}, {:.4f}]".format(*ends)
    ends = [100 * metrics[f"test/skill{end}"] for end in ("", "_low", "_high")]
    assert table["net"]["skill over the constant"] == "{:+.3f} % [{:+.3f}, {:+.3f}]".format(*ends)
    assert table["constant"]["rank IC"] == "none"
    for model in ("ridge", "minus_last_return"):
        one = table[model_label(model)]["rank IC"]
        assert one.split()[0] == f"{metrics[f'baseline/{model}/rank_ic']:.4f}"
        ends = [metrics[f"against/{model}/rank_ic{end}"] for end in ("", "_low", "_high")]
        less = page.table("Paired differences")[f"net vs {model_label(model)}"]["rank IC"]
        assert less == "{:.4f} [{:.4f}, {:.4f}]".format(*ends)


def test_spans_table_matches_metrics_json(page: Page, planted: tuple) -> None:
    table = page.table("Metrics by span")
    assert table["Huber loss"]["net, test"] == f"{planted[2]['test/loss']:.6g}"
    constant = table["Huber loss of the constant"]["net, test"]
    assert constant == f"{planted[2]['test/loss_trivial']:.6g}"
    assert table["rank IC"]["ridge, test"] == f"{planted[2]['baseline/ridge/rank_ic']:.6g}"
    assert table["Huber loss"]["net, val"] == "none"
    objective = page.table("Training in numbers")["training objective of a constant"]["value"]
    assert objective == "0.0833"


def test_months_and_hours_have_the_rank_ic_of_their_rows(page: Page) -> None:
    net = scored(strength=0.2).query("model == 'net'")
    months = net["trading_date"].to_numpy().astype("datetime64[M]").astype(str)
    table = page.table("Rank IC by month")
    assert list(table) == ["2024-01", "2024-02", "2024-03", "2024-04"]
    for name, row in table.items():
        own = net[months == name]
        value = rank_ic(own["score"].to_numpy(), own["outcome"].to_numpy())
        assert row["rank IC"].split()[0] == f"{value:.4f}"
        assert row["rows"] == f"{len(own):,}"
    hours = pd.DatetimeIndex(net["time"]).tz_convert("America/Chicago").hour
    table = page.table("Rank IC by hour")
    assert list(table)[:2] == ["17:00", "18:00"]
    own = net[hours == 3]
    value = rank_ic(own["score"].to_numpy(), own["outcome"].to_numpy())
    assert table["03:00"]["rank IC"].split()[0] == f"{value:.4f}"


def test_calibration_path_and_members_are_tabulated(page: Page, planted: tuple) -> None:
    _, result, metrics = planted
    deciles = page.table("Deciles of the forecast")
    assert len(deciles) == 10
    last = result.calibration.deciles[-1]
    assert deciles["10"]["mean realised rank"].startswith(f"{last.target.estimate:.4f} [")
    path = page.table("Share of the constant's loss saved")
    assert list(path) == ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-29"]
    assert path["2024-04-29"]["net"] == f"{100 * metrics['test/skill']:+.3f} %"
    members = page.table("Metrics of the individual members")
    greatest = metrics["test/rank_ic"] + 0.01 * (15 / 16 - 0.6)
    assert members["rank IC, test"]["max"] == f"{greatest:.6g}"


def test_rows_provenance_and_config_are_shown_and_escaped(page: Page) -> None:
    ledger = page.table("Every input row")
    assert {name: row["rows"] for name, row in ledger.items()} == {
        "input rows": "9,700", "dropped: vwap <undefined>": "100",
        "kept in train": "0", "kept in val": "0", "kept in test": "9,600",
    }  # fmt: skip
    origin = page.table("Data and code")
    assert origin["data sha256"]["value"] == "ab12"
    assert origin["versions torch"]["value"] == "2.13.0"
    assert "gradient_clip_val: 1.0" in page.all("pre")[0].text


def test_page_is_accessible_to_a_screen_reader(page: Page) -> None:
    assert page.unbalanced == []
    assert page.all("html")[0].attributes["lang"] == "en"
    assert [len(page.all(tag)) for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    ids = page.ids()
    assert len(ids) == len(set(ids))
    headings = [one.tag for one in page.elements if one.tag in ("h1", "h2", "h3")]
    assert headings == ["h1", *["h2"] * (len(headings) - 1)]
    assert {one.attributes["href"][1:] for one in page.all("a")} <= set(ids)
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert all(one.attributes["scope"] in ("row", "col") for one in page.all("th"))
    for one in page.elements:
        for named in ("aria-labelledby", "aria-describedby"):
            assert set(one.attributes.get(named, "").split()) <= set(ids)


def test_every_plot_is_described_in_numbers(page: Page) -> None:
    pictures = page.all("svg")
    assert [one.attributes["aria-labelledby"] for one in pictures] == [
        f"{name}-title" for name in PICTURES
    ]
    assert {one.attributes["role"] for one in pictures} == {"img"}
    said = {one.attributes["id"]: one.text for one in page.all("desc")}
    assert all(sum(c.isdigit() for c in said[f"{name}-description"]) >= 6 for name in PICTURES)
    assert said["losses-description"] == (
        "Objective on train goes from 0.0791 to 0.0601 in 200 steps; a constant has 0.0833. "
        "Loss on val goes from 0.016 to 0.015 in 200 steps; a constant has 0.0158."
    )
    assert said["norms-description"].endswith("largest 0.5; clipped above 1.")


def test_page_fetches_nothing_and_runs_no_script(page: Page) -> None:
    assert page.all("script") == []
    for one in page.elements:
        for name, value in one.attributes.items():
            if name.split(":")[-1] in ("src", "href", "srcset", "data", "action"):
                assert value.startswith(("#", "data:")), (one.tag, name, value)
            assert not name.startswith("on")
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style


def test_report_is_deterministic(planted: tuple, tmp_path: Path, page: Page) -> None:
    write_run(tmp_path / "planted", scored(strength=0.2), members=16)
    again = (tmp_path / "planted" / "report.html").read_bytes()
    assert again == (planted[0] / "report.html").read_bytes()
    assert len(page.elements) > 500


def test_results_are_in_tensorboard_once(planted: tuple) -> None:
    run, result, metrics = planted
    table = scored(strength=0.2)
    publish(run, table, result, metrics=metrics, pictures=True)  # again
    folder = run / "tensorboard"
    assert len(list(folder.glob("*.report"))) == 1
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == sorted(f"report/{name}" for name in PICTURES)
    (image,) = events.Images("report/calibration")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert [one.step for one in events.Scalars("val/loss")] == [99, 199]
    skill, last = events.Scalars("report/skill/net")
    assert (skill.step, last.step, last.value) == (0, 199, skill.value)
    assert skill.value == pytest.approx(result.net.skill.estimate, rel=1e-6)
    for name, one in result.baselines.items():
        skill, _ = events.Scalars(f"report/skill/{name}")
        assert skill.value == pytest.approx(one.skill.estimate, rel=1e-6)
    assert "report/rank_ic/constant" not in events.Tags()["scalars"]
    (said,) = events.Tensors("report/verdict")
    assert said.tensor_proto.string_val == [verdict(result).encode()]


def test_tensorboard_of_a_sweep_shows_test_figures_of_the_chosen_run_only(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    table = scored(strength=0.2)
    for name in ("0", "1"):
        result, metrics = write_run(tmp_path / name, table, pictures=False)

    def results(name: str) -> set[str]:
        tags = Board(tmp_path / name / "tensorboard").tags
        return {tag for kind in EVERYTHING for tag in tags[kind] if tag.startswith("report/")}

    hidden = {
        "report/verdict",
        "report/config",
        "report/provenance",
        "report/train/objective_trivial",
    }
    assert results("0") == results("1") == hidden
    rows = pd.DataFrame({"chosen": [True, False], "run": ["1", "0"]})
    rows.to_parquet(tmp_path / "sweep.parquet")
    for name in ("0", "1"):
        publish(tmp_path / name, table, result, metrics=metrics, pictures=False)
    assert results("0") == hidden
    assert {"report/test/score", "report/test/skill", "report/skill/net"} <= results("1")
    assert Board(tmp_path / "1" / "tensorboard").text("report/verdict") == verdict(result)


def test_report_without_matplotlib_has_every_number(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust_fin.evaluation.report.plots.find_spec", lambda _: None)
    write_run(tmp_path / "planted", scored(strength=0.2), members=16)
    bare = Page.read(tmp_path / "planted" / "report.html")
    assert bare.tables() == page.tables()
    assert bare.all("svg") == []
    assert [one.text for one in bare.all("p")].count(report.NO_MATPLOTLIB) == 1
    assert "pip install 'robust-fin[report]'" in report.NO_MATPLOTLIB
    events = EventAccumulator(str(tmp_path / "planted" / "tensorboard")).Reload()
    assert events.Tags()["images"] == []
    assert "report/skill/net" in events.Tags()["scalars"]


def test_report_of_a_control_says_so(tmp_path: Path) -> None:
    table = scored(strength=0.2)
    result, metrics = write_run(tmp_path / "run", table, pictures=False)
    config = tmp_path / "run" / "bundle" / "config.yaml"
    config.write_text(config.read_text().replace("kept", "shuffled"))
    publish(tmp_path / "run", table, result, metrics=metrics, pictures=False)
    said = [one.text for one in Page.read(tmp_path / "run" / "report.html").all("p")]
    assert "This is a control: the net was trained on shuffled labels." in said


def test_report_needs_only_predictions(tmp_path: Path) -> None:
    table = scored(strength=0.2)
    result, metrics = write_run(tmp_path / "whole", table, pictures=False)
    (tmp_path / "bare").mkdir()
    publish(tmp_path / "bare", table, result, metrics=metrics, pictures=False)
    page = Page.read(tmp_path / "bare" / "report.html")
    said = [one.text for one in page.all("p")]
    assert "The run has no rows.json." in said
    assert "The run has no training curves: it used no TensorBoard logger." in said


def test_report_of_a_constant_net(tmp_path: Path) -> None:
    table = scored(strength=0.2)
    table.loc[table["model"] == "net", "score"] = 0.5
    write_run(tmp_path / "run", table)
    page = Page.read(tmp_path / "run" / "report.html")
    assert page.all("h1")[0].text == "No skill"
    assert page.table("Rank IC by month")["2024-01"]["rank IC"] == "none"


def test_train_and_evaluate_write_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    metrics = run_training(run, *SMALL, "report.pictures=true")
    assert f"report       {run / 'report.html'}" in capsys.readouterr().out
    assert (run / "report.html").stat().st_mtime_ns <= (run / "metrics.json").stat().st_mtime_ns
    page = Page.read(run / "report.html")
    table = page.table("Metrics by span")
    assert table["Huber loss"]["net, test"] == f"{metrics['test/loss']:.6g}"
    assert table["Huber loss"]["net, val"] == f"{metrics['val/loss']:.6g}"
    assert {"calibration-title", "losses-title", "norms-title"} <= set(page.ids())
    trivial = metrics["train/objective_trivial"]
    constant = min(np.var(_trained(run)), np.mean((_trained(run) - np.median(_trained(run))) ** 2))
    assert trivial == pytest.approx(constant, rel=1e-6)
    ledger = json.loads((run / "rows.json").read_text())
    assert page.table("Every input row")["input rows"]["rows"] == f"{ledger['rows_in']:,}"
    (run / "report.html").unlink()
    assert evaluate.main([f"run={run}"]) == 0
    assert f"report       {run / 'report.html'}" in capsys.readouterr().out
    again = Page.read(run / "report.html")
    assert again.tables() == page.tables()
    assert any(one.text.startswith("Trial ") for one in again.all("p"))


def _trained(run: Path) -> np.ndarray:
    """Rank targets of the training rows."""
    from robust_fin.bundle.config import read_config
    from robust_fin.runs.training import load_first_fold

    return load_first_fold(read_config(run)).target("train")


def test_values_cannot_inject_html(tmp_path: Path) -> None:
    attack = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    table = scored(strength=0.2)
    judgement, metrics = write_run(tmp_path / "run", table, pictures=False)
    bundle = tmp_path / "run" / "bundle"
    (bundle / "config.yaml").write_text(json.dumps({"name": attack, "trainer": {}}))
    (bundle / "provenance.json").write_text(json.dumps({attack: attack}))
    ledger = {"rows_in": 1, "dropped": {attack: 1}, "spans": {attack: 0}, "reports": {attack: 1}}
    (tmp_path / "run" / "rows.json").write_text(json.dumps(ledger))
    table["contract"] = attack
    publish(tmp_path / "run", table, judgement, metrics=metrics, pictures=True, notes=[attack])
    page = Page.read(tmp_path / "run" / "report.html")
    assert (page.all("script"), page.all("img"), page.unbalanced) == ([], [], [])
    shown = [element.text for element in page.elements if element.tag in ("p", "th", "td", "title")]
    assert sum(attack in text for text in shown) >= 8
    assert attack in [text for text in shown if text == attack]
