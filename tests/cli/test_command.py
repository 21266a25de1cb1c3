"""Tests of --help: it is short, agrees with the config, and imports no torch."""

import inspect
import pydoc
import subprocess
import sys

import pytest

import robust_fin
from robust_fin.cli.command import (
    COMMANDS,
    format_command_list,
    format_help,
    list_experiments,
    split_options,
)
from robust_fin.cli.composition import compose_config, group_choices
from robust_fin.errors import ConfigError
from tests.conftest import ROOT


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_on_a_screen_and_lists_the_keys_of_the_command(command: str) -> None:
    lines = format_help(command).splitlines()
    assert len(lines) <= 46
    assert max(map(len, lines)) <= 100
    assert f"  python -m robust_fin.{command} " in "\n".join(lines)
    keys = [key for key, _ in COMMANDS[command].keys]
    config = compose_config(command, []).config
    for key in keys:
        assert key.split(".")[0] in list(config)
        assert [line for line in lines if line.startswith(f"  {key}=")], key


def test_train_help_lists_commands_experiments_and_defaults_of_the_config() -> None:
    text = format_help("train")
    for command, usage in COMMANDS.items():
        assert f"  {command:<9}  {usage.line}\n" in text
    assert [name for name, _ in list_experiments()] == group_choices("experiment")
    for name, line in list_experiments():
        assert f"  {name:<10}  {line}\n" in text
    config = compose_config("train", []).config
    for key in ("optimizer.lr", "batch_size", "trainer.max_epochs", "seed"):
        node = config
        for part in key.split("."):
            node = node[part]
        assert f"  {key}={node} " in text
    assert "  model=residual_mlp " in text
    assert "plain_mlp, prenorm_mlp, residual_mlp\n" in text
    assert "  model.hidden=[16,8] " in text
    assert "  source.path=null " in text


def test_required_keys_have_a_question_mark() -> None:
    assert "  out=? " in format_help("predict")
    assert "  lockbox=false " in format_help("evaluate")


@pytest.mark.parametrize("words", [["robust_fin.train", "--help"], ["robust_fin", "train", "-h"]])
def test_help_imports_no_torch(words: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *words],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == format_help("train")
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "pandas", "numpy"}


@pytest.mark.parametrize(
    ("words", "options", "overrides"),
    [
        (["+experiment=top5", "--cfg", "job"], ["--cfg", "job"], ["+experiment=top5"]),
        (["--cfg=job", "seed=3"], ["--cfg=job"], ["seed=3"]),
        (["seed=1,2", "-m", "-c", "all"], ["-m", "-c", "all"], ["seed=1,2"]),
        (["--info", "seed=3"], ["--info", "all"], ["seed=3"]),
    ],
)
def test_options_stand_anywhere(words: list[str], options: list[str], overrides: list[str]) -> None:
    assert split_options(words, verb="train") == (options, overrides)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experiment", "top5"], "--experiment is not an option; did you mean +experiment=top5?"),
        (["--experiment=top5"], "--experiment is not an option; did you mean +experiment=top5?"),
        (["--seed", "3"], "--seed is not an option; did you mean seed=3?"),
        (["--lr=1"], "--lr is not an option; did you mean optimizer.lr=1 or population.lr=1?"),
        (["--foo"], "--foo is not an option; settings are written key=value, without --."),
        (["--cfg", "seed=3"], "--cfg needs a value: job, hydra, all"),
    ],
)
def test_unknown_option_names_the_override(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        split_options(words, verb="train")
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "parameters", "text"),
    [
        ("predict", ["run", "bars", "words"], "Score every bar that has all features"),
        ("evaluate", ["run"], "Judge the test span of a finished run against its baselines"),
    ],
)
def test_help_of_a_callable_module_shows_its_function(
    name: str, parameters: list[str], text: str
) -> None:
    module = getattr(robust_fin, name)
    assert list(inspect.signature(module).parameters) == parameters
    shown = pydoc.plain(pydoc.render_doc(module))
    assert f"{name}({parameters[0]}: " in shown
    assert text in shown


def test_command_list_has_every_command() -> None:
    assert format_command_list().splitlines()[0] == "robust-fin COMMAND [key=value]"
    assert len(format_command_list().splitlines()) == len(COMMANDS) + 3
