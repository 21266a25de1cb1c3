"""Tests of the messages for unknown keys and choices, with the closest match."""

from pathlib import Path

import pytest

from robust_fin import train
from robust_fin.cli.composition import compose_config, explain_error
from robust_fin.errors import ConfigError

NO_EXPERIMENT = "+experiment=topfive does not exist; did you mean +experiment=top5? Choices: "


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trainer.max_epoch=3"],
            "trainer.max_epoch is not a key; did you mean trainer.max_epochs?",
        ),
        (["optimzer.lr=0.1"], "optimzer.lr is not a key; did you mean optimizer.lr?"),
        (["sead=1"], "sead is not a key; did you mean seed?"),
        (["lr=0.1"], "lr is not a key; did you mean optimizer.lr or population.lr?"),
        (["max_epochs=3"], "max_epochs is not a key; did you mean trainer.max_epochs?"),
        (["modl=residual_mlp"], "modl is not a key; did you mean model?"),
        (["source.synthetic.row=9"],
         "source.synthetic.row is not a key; did you mean source.synthetic.rows?"),
        (["split=cpcv", "split.group=9"], "split.group is not a key; did you mean split.groups?"),
        (["~trainer.max_epoch"],
         "trainer.max_epoch is not a key; did you mean trainer.max_epochs?"),
        (["hydra.run.dri=x"], "hydra.run.dri is not a key; did you mean hydra.run.dir?"),
        (
            ["optimizer.learning_rate=1"],
            "optimizer.learning_rate is not a key. Keys of optimizer: lr, weight_decay, betas, "
            "fused",
        ),
        (
            ["model=residul_mlp"],
            "model=residul_mlp does not exist; did you mean model=residual_mlp? "
            "Choices: plain_mlp, prenorm_mlp, residual_mlp",
        ),
        (["experiment=top5"],
         "experiment must be added to the defaults: write +experiment=NAME, with a plus"),
        (["top5"], "top5 has no value; did you mean +experiment=top5?"),
        (["huber"], "huber has no value; did you mean loss=huber?"),
        (["nothing"], "nothing has no value; overrides are key=value, as --help shows"),
        (["+experimnt=top5"], "experimnt is not a key; did you mean +experiment?"),
        (["+num_workers=4"],
         "num_workers is not a key; did you mean population.workers or sweep.workers?"),
        (["+foo=1"], "foo is not a key; --help shows the most used, --cfg job all of them"),
        (["+optimizer.foo=1"],
         "optimizer.foo is not a key. Keys of optimizer: lr, weight_decay, betas, fused"),
        (["optimizer.amsgrad=true"],
         "optimizer.amsgrad is not among the defaults: write +optimizer.amsgrad=VALUE, with a "
         "plus"),
        (["features=[a,b]"],
         "features=[a,b] is not a choice. For a list of features write features.names=[a,b]; for "
         "a set of features one of rich, rich_vix, study, top5"),
        (["model=null"],
         "model=null does not exist. Choices: plain_mlp, prenorm_mlp, residual_mlp"),
        (["=5"], "=5 has no key; overrides are key=value, as --help shows"),
        (["+sead=3"], "sead is not a key; did you mean seed?"),
        (
            ["+checkpoint.every=3"],
            "checkpoint.every is not a key; did you mean checkpoint.every_n_steps?",
        ),
    ],
    ids=lambda one: one[-1] if isinstance(one, list) else "",
)  # fmt: skip
def test_error_suggests_the_closest_match(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_config("train", words)
    assert str(raised.value) == message


def test_suggested_experiment_has_a_plus() -> None:
    with pytest.raises(ConfigError) as raised:
        compose_config("train", ["+experiment=topfive"])
    assert str(raised.value).startswith(NO_EXPERIMENT)


@pytest.mark.parametrize(
    "word",
    ["+optimizer.amsgrad=true", "+trainer.max_epochs=3", "hydra.run.dir=x", "+experiment=top5"],
)
def test_constructor_arguments_can_be_added(word: str) -> None:
    if "max_epochs" in word:
        word = f"+{word}"  # ++ overrides an existing key
    compose_config("train", [word])


def test_rejected_constructor_argument_gets_a_suggestion() -> None:
    error = "unexpected keyword argument 'residul'\nfull_key: model"
    message = explain_error(ValueError(error), verb="train", words=["+model.residul=true"])
    assert message == f"{error}\nmodel.residul is not a key; did you mean model.residual?"


def test_each_command_has_its_own_keys() -> None:
    with pytest.raises(ConfigError, match=r"^lockbx is not a key; did you mean lockbox\?$"):
        compose_config("evaluate", ["lockbx=true"])


def test_own_folder_of_choices_adds_to_those_of_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gated.yaml").write_text("_target_: my_net.GatedMLP\nwidth: 16\n")
    words = ["+experiment=smoke", "model=gated"]
    composed = compose_config("train", [f"hydra.searchpath=[{tmp_path}]", *words])
    assert composed.config.model == {"_target_": "my_net.GatedMLP", "width": 16}
    assert train.main([f"--config-dir={tmp_path}", *words, "--cfg", "job"]) == 0
    assert "_target_: my_net.GatedMLP" in capsys.readouterr().out
