"""Tests of the console script robust-fin and its completion."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robust_fin.__main__ import main
from robust_fin.cli.command import COMMANDS, format_command_list, format_help
from tests.conftest import ROOT

Capture = pytest.CaptureFixture[str]


def test_no_command_prints_the_list_and_a_wrong_one_gets_a_suggestion(capfd: Capture) -> None:
    assert main([]) == 0
    assert capfd.readouterr().out == format_command_list()
    assert main(["trian"]) == 1
    message = (
        "error: trian is not a command; did you mean train? Commands: train, predict, evaluate, "
    )
    assert capfd.readouterr().err.startswith(message)


def test_command_gets_the_remaining_arguments(capfd: Capture) -> None:
    assert main(["evaluate", "--help"]) == 0
    assert capfd.readouterr().out == format_help("evaluate")
    assert main(["evaluate", "run=gone"]) == 1
    assert "error: gone is not a run folder" in capfd.readouterr().err
    assert main(["evaluate", "rum=gone"]) == 1
    assert capfd.readouterr().err == "error: rum is not a key; did you mean run?\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("robust-fin ", list(COMMANDS)),
        ("robust-fin  re", ["replay"]),
        ("robust-fin train +exp", ["+experiment="]),
        ("robust-fin train +experiment=to", ["+experiment=top5"]),
        ("robust-fin train  seed=1 model=", [
            "model=plain_mlp", "model=prenorm_mlp", "model=residual_mlp"]),
        ("robust-fin train trainer.max_", [
            "trainer.max_epochs=", "trainer.max_steps=", "trainer.max_time="]),
        ("robust-fin evaluate lock", ["lockbox="]),
    ],
)  # fmt: skip
def test_completion_offers_commands_choices_and_keys(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture, line: str, offered: list[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert capfd.readouterr().out.split() == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_works_in_bash(tmp_path: Path) -> None:
    program = tmp_path / "robust-fin"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from robust_fin.__main__ import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    script = (
        f'PATH={tmp_path}:$PATH\neval "$(robust-fin -sc install=bash)"\ncomplete -p robust-fin\n'
        'COMP_LINE="robust-fin train loss=" COMP_CWORD=2 COMP_POINT=22\n'
        'hydra_bash_completion\necho "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    installed, *rest = done.stdout.splitlines()
    assert "-F hydra_bash_completion robust-fin" in installed
    assert rest == ["loss=absolute loss=huber loss=squared"]
