import re
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.custom_scalar.layout_pb2 import Chart, Layout
from tensorboard.plugins.hparams import api_pb2, metadata

from robust_fin.evaluation.tensorboard.summaries import (
    BUCKETS,
    GROUPS,
    KEYS,
    METRICS,
    histogram,
    hyperparameters,
    layout,
    scalars,
    session_end,
    session_start,
    text,
    write_events,
)
from tests.evaluation.boards import Board

SETTINGS = {
    "seed": 3,
    "batch_size": 256,
    "model": {"_target_": "robust_fin.models.mlp.ResidualMLP", "hidden": [16, 8],
              "residual": True, "dropout": 0.1},
    "loss": {"_target_": "robust_fin.training.losses.squared", "_partial_": True},
    "optimizer": {"lr": 0.003, "betas": [0.9, 0.999]},
    "trainer": {"max_epochs": 2, "gradient_clip_val": None, "enable_progress_bar": False},
    "source": {"synthetic": {"signal": 0.2}, "path": None},
}  # fmt: skip


def test_main_settings_keep_their_types() -> None:
    assert hyperparameters(SETTINGS, []) == {
        "model": "ResidualMLP", "loss": "squared", "seed": 3.0, "batch_size": 256.0,
        "model.hidden": "16, 8", "model.residual": True, "model.dropout": 0.1,
        "optimizer.lr": 0.003, "trainer.max_epochs": 2.0,
    }  # fmt: skip
    assert hyperparameters(SETTINGS, [])["model.residual"] is True


@pytest.mark.parametrize(
    ("word", "added"),
    [
        ("source.synthetic.signal=0.2", {"source.synthetic.signal": 0.2}),
        ("+experiment=smoke", {"experiment": "smoke"}),
        ("loss=squared", {"loss": "squared"}),
        ("++optimizer.betas=[0.9,0.999]", {"optimizer.betas": "0.9, 0.999"}),
        ("source.path=null", {"source.path": "null"}),
        ("~callbacks.histograms", {}),
        ("hydra.run.dir=/tmp/x", {}),
        ("cache.folder=null", {}),
        ("trainer.enable_progress_bar=false", {}),
    ],
)
def test_command_line_overrides_are_added(word: str, added: dict[str, object]) -> None:
    assert hyperparameters(SETTINGS, [word]) == {**hyperparameters(SETTINGS, []), **added}


def test_every_run_lists_the_same_metrics_and_main_settings() -> None:
    words = ["+experiment=smoke", "optimizer.lr=0.003"]
    experiment, start = session_start(hyperparameters(SETTINGS, words), words)
    assert experiment.tag == "_hparams_/experiment"
    result = metadata.parse_experiment_plugin_data(experiment.metadata.plugin_data.content)
    infos = {one.name: one for one in result.hparam_infos}
    assert set(infos) == {*GROUPS, *KEYS, "experiment"}
    assert [one.name for one in result.hparam_infos if one.differs] == ["optimizer.lr"]
    kinds = {name: infos[name].type for name in ("seed", "model.residual", "model", "loss.delta")}
    assert kinds == {
        "seed": api_pb2.DATA_TYPE_FLOAT64,
        "model.residual": api_pb2.DATA_TYPE_BOOL,
        "model": api_pb2.DATA_TYPE_STRING,
        "loss.delta": api_pb2.DATA_TYPE_STRING,  # this run has none
    }
    named = [(one.name.group, one.name.tag, one.display_name) for one in result.metric_infos]
    assert named == [("", f"report/{name}", name) for name in METRICS]
    assert METRICS[0] == "val/skill"
    began = metadata.parse_session_start_info_plugin_data(start.metadata.plugin_data.content)
    assert began.hparams["optimizer.lr"].number_value == 0.003
    assert began.hparams["model.residual"].bool_value is True
    assert "loss.delta" not in began.hparams


@pytest.mark.parametrize(
    ("failed", "status"), [(False, api_pb2.STATUS_SUCCESS), (True, api_pb2.STATUS_FAILURE)]
)
def test_session_end_records_success_or_failure(failed: bool, status: int) -> None:
    content = session_end(failed=failed).metadata.plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == status


def test_histogram_counts_every_value_in_its_bucket() -> None:
    values = np.random.default_rng(0).normal(size=999)
    result = histogram("spread", values).histo
    assert (result.num, result.min, result.max) == (999, values.min(), values.max())
    assert result.sum == pytest.approx(values.sum())
    assert result.sum_squares == pytest.approx((values**2).sum())
    ends, counts = np.array(result.bucket_limit), np.array(result.bucket)
    assert (ends.size, counts.size) == (BUCKETS + 1, BUCKETS + 1)
    assert counts[0] == 0
    assert counts.sum() == 999
    for place in (1, BUCKETS // 2, BUCKETS - 1):
        inside = (values >= ends[place - 1]) & (values < ends[place])
        assert counts[place] == inside.sum()


def test_histogram_of_a_constant() -> None:
    result = histogram("same", np.full(7, 0.5)).histo
    assert sum(result.bucket) == result.num == 7


def test_written_points_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1.host"
    write_events(path, {-1: [text("words", "**a** | b")], 7: scalars({"one": 0.25, "two": -3.0})})
    board = Board(tmp_path)
    assert (board.curve("one"), board.curve("two")) == ({7: 0.25}, {7: -3.0})
    assert board.text("words") == "**a** | b"
    (event,) = board.events.Tensors("words")
    assert event.step == -1
    assert isinstance(event.tensor_proto, TensorProto)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


TAGS = (
    "train/objective", "train/objective_trivial", "val/loss", "val/loss_trivial", "val/skill",
    "val/skill_squared", "val/rank_ic", "lr", "train/gradient_norm", "stability/gradient_norm_p50",
    "stability/gradient_norm_p99", "stability/gradient_norm_max", "stability/gradient_clip",
    "stability/update_ratio/head", "stability/dead/blocks.0.2", "report/skill/net",
    "report/skill/ridge", "report/skill/minus_last_return", "report/rank_ic/minus_last_return",
)  # fmt: skip


def charts(*, members: bool) -> dict[str, dict[str, Chart]]:
    result = Layout.FromString(layout(members=members).tensor.string_val[0])
    return {one.title: {chart.title: chart for chart in one.chart} for one in result.category}


def drawn(chart: Chart) -> list[str]:
    """Return the tags that TensorBoard draws: a regular expression matches at their start."""
    return [tag for tag in TAGS if any(re.match(one, tag) for one in chart.multiline.tag)]


@pytest.mark.parametrize(
    ("category", "title", "tags"),
    [
        ("loss", "loss on val, net and constant", ["val/loss", "val/loss_trivial"]),
        ("loss", "objective on train, net and constant",
         ["train/objective", "train/objective_trivial"]),
        ("skill", "skill on val", ["val/skill"]),
        ("skill", "skill on test, net and baselines", ["report/skill/net", "report/skill/ridge"]),
        ("rank IC", "rank IC on val", ["val/rank_ic"]),
        ("rank IC", "rank IC on test, net and baselines", ["report/rank_ic/minus_last_return"]),
        ("gradient norm", "of single steps, before clipping", ["train/gradient_norm"]),
        ("gradient norm", "between two diagnoses, and the clipping threshold",
         [f"stability/gradient_{name}" for name in ("norm_p50", "norm_p99", "norm_max", "clip")]),
        ("learning rate", "learning rate", ["lr"]),
        ("update ratios", "size of the last update relative to the weights, by layer",
         ["stability/update_ratio/head"]),
        ("units and forecasts", "share of dead units", ["stability/dead/blocks.0.2"]),
    ],
)  # fmt: skip
def test_chart_matches_exactly_these_tags(category: str, title: str, tags: list[str]) -> None:
    assert drawn(charts(members=False)[category][title]) == tags


def test_test_metric_is_drawn_with_its_interval() -> None:
    for name, spoken in (("skill", "skill"), ("rank_ic", "rank IC")):
        (series,) = charts(members=False)[spoken][f"{spoken} on test, 95 % interval"].margin.series
        assert (series.value, series.lower, series.upper) == (
            f"report/test/{name}", f"report/test/{name}_low", f"report/test/{name}_high",
        )  # fmt: skip


def test_members_are_drawn_as_a_band() -> None:
    result = charts(members=True)
    for category, title, tag in (
        ("loss", "objective on train, 95 % of the members", "train/objective"),
        ("skill", "skill on val, 95 % of the members", "val/skill"),
        ("rank IC", "rank IC on val, 95 % of the members", "val/rank_ic"),
    ):
        (series,) = result[category][title].margin.series
        assert (series.value, series.lower, series.upper) == tuple(
            f"members/{tag}_{part}" for part in ("mean", "low", "high")
        )
        assert title not in charts(members=False)[category]
    assert "members/train/gradient_norm_max$" in (
        result["gradient norm"]["of single steps, before clipping"].multiline.tag
    )
    assert "update ratios" not in result
