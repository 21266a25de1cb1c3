"""What --help says is short, true of the config, and comes without torch."""

import subprocess
import sys

import pytest

from robust_fin.cli.command import COMMANDS, format_command_list, format_help, list_experiments
from robust_fin.cli.composition import compose_config, group_choices
from tests.conftest import ROOT


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_fits_a_screen_and_names_the_verbs_own_words(verb: str) -> None:
    lines = format_help(verb).splitlines()
    assert len(lines) <= 46
    assert max(map(len, lines)) <= 100
    assert f"  python -m robust_fin.{verb} " in "\n".join(lines)
    keys = [key for key, _ in COMMANDS[verb].keys]
    config = compose_config(verb, []).config
    for key in keys:
        assert key.split(".")[0] in list(config)
        assert [line for line in lines if line.startswith(f"  {key}=")], key


def test_train_says_verbs_experiments_and_defaults_as_the_config_has_them() -> None:
    said = format_help("train")
    for verb, usage in COMMANDS.items():
        assert f"  {verb:<9}  {usage.line}\n" in said
    assert [name for name, _ in list_experiments()] == group_choices("experiment")
    for name, line in list_experiments():
        assert f"  {name:<10}  {line}\n" in said
    config = compose_config("train", []).config
    for key in ("optimizer.lr", "batch_size", "trainer.max_epochs", "seed"):
        node = config
        for part in key.split("."):
            node = node[part]
        assert f"  {key}={node} " in said
    assert "  model=residual_mlp " in said
    assert "plain_mlp, prenorm_mlp, residual_mlp\n" in said
    assert "  model.hidden=[16,8] " in said
    assert "  source.path=null " in said


def test_what_must_be_given_is_a_question() -> None:
    assert "  out=? " in format_help("predict")
    assert "  lockbox=false " in format_help("evaluate")


@pytest.mark.parametrize("words", [["robust_fin.train", "--help"], ["robust_fin", "train", "-h"]])
def test_help_imports_no_torch(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *words],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == format_help("train")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "pandas", "numpy"}


def test_without_a_verb_the_verbs_are_listed() -> None:
    assert format_command_list().splitlines()[0] == "robust-fin COMMAND [key=value]"
    assert len(format_command_list().splitlines()) == len(COMMANDS) + 3
