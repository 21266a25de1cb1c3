import pytest
from tensorboard.plugins.hparams import api_pb2, metadata

from robust_fin.evaluation.tensorboard.dashboard import (
    KEYS,
    METRICS,
    NAMED,
    hyperparameters,
    session_end,
    session_start,
)

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


def test_the_main_settings_keep_their_types() -> None:
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
def test_what_the_command_line_set_is_there_too(word: str, added: dict[str, object]) -> None:
    assert hyperparameters(SETTINGS, [word]) == {**hyperparameters(SETTINGS, []), **added}


def test_every_run_names_the_same_figures_and_main_settings() -> None:
    words = ["+experiment=smoke", "optimizer.lr=0.003"]
    experiment, start = session_start(hyperparameters(SETTINGS, words), words)
    assert experiment.tag == "_hparams_/experiment"
    found = metadata.parse_experiment_plugin_data(experiment.metadata.plugin_data.content)
    infos = {one.name: one for one in found.hparam_infos}
    assert set(infos) == {*NAMED, *KEYS, "experiment"}
    assert [one.name for one in found.hparam_infos if one.differs] == ["optimizer.lr"]
    kinds = {name: infos[name].type for name in ("seed", "model.residual", "model", "loss.delta")}
    assert kinds == {
        "seed": api_pb2.DATA_TYPE_FLOAT64,
        "model.residual": api_pb2.DATA_TYPE_BOOL,
        "model": api_pb2.DATA_TYPE_STRING,
        "loss.delta": api_pb2.DATA_TYPE_STRING,  # this run has none
    }
    named = [(one.name.group, one.name.tag, one.display_name) for one in found.metric_infos]
    assert named == [("", f"report/{name}", name) for name in METRICS]
    assert METRICS[0] == "val/skill"
    began = metadata.parse_session_start_info_plugin_data(start.metadata.plugin_data.content)
    assert began.hparams["optimizer.lr"].number_value == 0.003
    assert began.hparams["model.residual"].bool_value is True
    assert "loss.delta" not in began.hparams


@pytest.mark.parametrize(
    ("failed", "status"), [(False, api_pb2.STATUS_SUCCESS), (True, api_pb2.STATUS_FAILURE)]
)
def test_a_session_ends_one_way_or_the_other(failed: bool, status: int) -> None:
    content = session_end(failed=failed).metadata.plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == status
