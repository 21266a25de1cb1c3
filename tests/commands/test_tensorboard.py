"""TensorBoard: the contents of the event files, and what a browser shows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tensorboard.plugins.hparams import api_pb2

from robust_fin import train
from robust_fin.bundle.config import read_config
from robust_fin.bundle.folder import read_provenance
from robust_fin.evaluation.tensorboard.summaries import METRICS
from tests.browser.chromium import find_browser
from tests.browser.devtools import Browser, browser
from tests.browser.tensorboards import tensorboard
from tests.evaluation.boards import Board
from tests.small_runs import QUICK, read_metrics

pytestmark = pytest.mark.processes

SMALL = (
    "+experiment=smoke", *QUICK, "features=study", "source.synthetic.rows=4000", "batch_size=64",
    "trainer.max_epochs=2", "split.refit=false",
)  # fmt: skip
RATES = {"0": 0.003, "1": 0.01, "2": 1e30}  # the last one fails
WIDTH, HEIGHT = 1200, 900


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs in the folders of a sweep: two finished, one failed."""
    folder = tmp_path_factory.mktemp("sweep")
    for name, lr in RATES.items():
        pictures = "true" if name == "0" else "false"
        words = (f"optimizer.lr={lr}", f"hydra.run.dir={folder / name}")
        code = train.main([*SMALL, *words, f"report.pictures={pictures}"])
        assert code == (1 if lr > 1 else 0)
    return folder


def slow(*case: object) -> object:
    """Mark a case as slow."""
    return pytest.param(*case, marks=pytest.mark.slow)


def board(sweep: Path, name: str) -> Board:
    return Board(sweep / name / "tensorboard")


def test_hparams_table_has_every_run_with_its_settings(sweep: Path) -> None:
    for name, lr in RATES.items():
        found = board(sweep, name).settings()
        assert found["optimizer.lr"] == lr
        assert (found["experiment"], found["features"]) == ("smoke", "study")
        assert (found["model"], found["model.hidden"]) == ("ResidualMLP", "16, 8")
        assert (found["seed"], found["model.residual"]) == (0.0, True)
    ends = [board(sweep, name).end() for name in RATES]
    assert [one.status for one in ends] == [
        api_pb2.STATUS_SUCCESS, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE,
    ]  # fmt: skip
    starts = [board(sweep, name).start().start_time_secs for name in RATES]
    assert all(one.end_time_secs > start for one, start in zip(ends, starts, strict=True))
    assert "NonFiniteError: the loss is nan" in board(sweep, "2").text("report/failure")


def test_hparams_metrics_equal_metrics_json(sweep: Path) -> None:
    for name in ("0", "1"):
        found, metrics = board(sweep, name), read_metrics(sweep / name)
        infos = [one.name.tag for one in found.experiment().metric_infos]
        assert infos == [f"report/{one}" for one in METRICS]
        for one in METRICS:
            if metrics[one] is None:  # no interval over a single date
                assert f"report/{one}" not in found.tags["scalars"]
                continue
            curve = found.curve(f"report/{one}")
            assert list(curve) == [0, max(found.curve("stability/forecast_std"))]
            assert list(curve.values()) == pytest.approx([metrics[one]] * 2, rel=1e-6)
    assert not set(infos) & set(board(sweep, "2").tags["scalars"])


def test_curves_of_the_shared_charts_exist(sweep: Path) -> None:
    found, metrics = board(sweep, "0"), read_metrics(sweep / "0")
    losses, trivial = found.curve("val/loss"), found.curve("val/loss_trivial")
    assert list(losses) == list(trivial)
    wanted = [metrics["val/loss_trivial"]] * len(trivial)
    assert list(trivial.values()) == pytest.approx(wanted, rel=1e-6)
    skill = found.curve("val/skill")
    assert [1 - losses[at] / trivial[at] for at in losses] == pytest.approx(
        list(skill.values()), abs=1e-6
    )
    flat = found.curve("train/objective_trivial")
    assert min(flat) == 0
    assert max(flat) == max(losses)
    wanted = [metrics["train/objective_trivial"]] * len(flat)
    assert list(flat.values()) == pytest.approx(wanted, rel=1e-6)
    norms = list(found.curve("train/gradient_norm").values())
    assert set(found.curve("stability/gradient_clip").values()) == {1.0}
    assert max(found.curve("stability/gradient_norm_max").values()) >= max(norms)


def test_histogram_of_test_scores_matches_the_predictions(sweep: Path) -> None:
    table = pd.read_parquet(sweep / "0" / "predictions.parquet")
    net = table[(table["model"] == "net") & table["outcome"].notna()]
    score = net["score"].to_numpy(dtype=np.float64)
    (event,) = board(sweep, "0").events.Histograms("report/test/score")
    found = event.histogram_value
    counts, _ = np.histogram(score, bins=len(found.bucket) - 1)
    assert list(found.bucket) == [0, *counts]
    assert (found.min, found.max, found.num) == (score.min(), score.max(), score.size)


def test_verdict_config_and_provenance_are_texts(sweep: Path) -> None:
    found, run = board(sweep, "0"), sweep / "0"
    config = (run / "bundle" / "config.yaml").read_text()
    assert found.text("report/config") == f"```yaml\n{config}```\n"
    assert read_config(run).optimizer.lr == 0.003
    rows = found.text("report/provenance").splitlines()
    assert rows[1] == "|---|---|"
    assert f"data sha256 | {read_provenance(run)['data_sha256']}" in rows
    assert found.text("report/verdict").startswith(("Skill ", "No skill "))


def test_figures_are_written(sweep: Path) -> None:
    assert set(board(sweep, "0").tags["images"]) == {
        f"report/{name}" for name in ("months", "hours", "calibration", "path", "losses", "norms")
    }
    assert board(sweep, "1").tags["images"] == []


@pytest.fixture(scope="module")
def page(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Browser]]:
    """URL of TensorBoard over the sweep, and a browser."""
    find_browser()
    with (
        tensorboard(sweep) as url,
        browser(tmp_path_factory.mktemp("profile")) as found,
    ):
        yield url, found


@pytest.mark.parametrize(
    ("tab", "words"),
    [
        slow("timeseries", {"0/tensorboard", "1/tensorboard", "2/tensorboard", "epoch"}),
        ("custom_scalars", {"loss", "loss on val, net and constant", "skill", "skill on val",
                            "skill on test, 95 % interval", "Matches (4)"}),
        ("hparams", {"optimizer.lr", "0.0030000", "0.010000", "1.0000e+30", "0/tensorboard",
                     "val/skill", "test/rank_ic"}),
        slow("images", {"report/calibration", "report/months", "report/losses"}),
        slow("histograms", {"gradients", "weights", "report", "gradients/blocks.0.0"}),
        slow("text", {"report/verdict", "report/config", "report/failure"}),
    ],
)  # fmt: skip
def test_browser_shows_every_tab(
    tab: str, words: set[str], page: tuple[str, Browser], tmp_path: Path
) -> None:
    url, found = page
    found.open(f"{url}#{tab}", width=WIDTH, height=HEIGHT)
    found.wait_for(words)
    found.shoot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.size == (WIDTH, HEIGHT)
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 100
    assert found.errors == []


def test_browser_draws_a_curve_per_run(page: tuple[str, Browser]) -> None:
    """The chart of val/skill has a line per run."""
    url, found = page
    found.open(f"{url}#custom_scalars", width=WIDTH, height=HEIGHT)
    found.wait_for({"skill on val"})
    paths = """(() => {
      const deep = (node) => [node, ...(node.shadowRoot ? deep(node.shadowRoot) : []),
        ...[...node.childNodes].flatMap(deep)];
      return deep(document.body).filter((one) => one.tagName === "path")
        .filter((one) => one.closest(".line-plot"))
        .filter((one) => (one.getAttribute("d") || "").includes("L")).length;
    })()"""
    assert found.wait_until(paths) > 2


@pytest.mark.slow
def test_missing_words_are_named_in_the_failure(page: tuple[str, Browser]) -> None:
    url, found = page
    found.open(f"{url}#text", width=WIDTH, height=HEIGHT)
    with pytest.raises(AssertionError, match=r"\['no such words'\] are not among"):
        found.wait_for({"no such words"}, seconds=0)
