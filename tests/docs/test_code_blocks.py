"""Tests that every code block of the README and docs/ runs, or has a reason why not."""

import contextlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

import robust_fin.__main__
from robust_fin.cli.composition import conf_folder
from tests.conftest import ROOT
from tests.docs.blocks import PAGES, Command, all_blocks, all_commands, blocks_of, files_of
from tests.docs.rules import COMPOSE, EXPAND, HELP, NOT, RULES, RUN, Rule, rules_of
from tests.docs.workshop import furnish, make_store, run_command, shell
from tests.made_once import made_once
from tests.planted_leaks import registry

pytestmark = pytest.mark.docs

KINDS = {
    "sh": "commands, each matched by one rule",
    "python": "executed, or written as the file that its first line names",
    "yaml": "written as the file that its first line names",
    "bat": "the commands of a shell block, as Windows writes them",
    "csv": "the first lines of a file that is made",
    "": "what a command shows",
}
COMMANDS = all_commands()
GROUPS = {path.name for path in conf_folder().iterdir() if path.is_dir()}
WITH_PYTHON = [page for page in PAGES if any(one.kind == "python" for one in blocks_of(page))]


def rule_of(command: Command) -> Rule | None:
    """Return the matching rule, or None if there is not exactly one."""
    found = rules_of(command)
    return found[0] if len(found) == 1 else None


def of_kind(*hows: str) -> list[Command]:
    found = [(command, rule_of(command)) for command in COMMANDS]
    return [command for command, rule in found if rule and rule.how in hows]


def with_settings() -> list[Command]:
    found = [(command, rule_of(command)) for command in of_kind(RUN, COMPOSE)]
    return [one for one, rule in found if one.verb and rule.name not in ("resume", "help")]


def by_choices() -> dict[tuple[str, ...], list[Command]]:
    """Group the commands with overrides by command, page with own configs, and group choices."""
    found: dict[tuple[str, ...], list[Command]] = {}
    for command in with_settings():
        own = command.page if any("config-dir" in word for word in command.given) else ""
        chosen = [word for word in command.overrides if is_choice(word)]
        found.setdefault((command.verb, own, *sorted(chosen)), []).append(command)
    return found


def is_choice(word: str) -> bool:
    key = word.lstrip("+~").partition("=")[0].partition("/")[0]
    return key in GROUPS and not word.startswith("~")


def named(command: Command) -> str:
    return f"{command.page}:{command.line} {command.text}"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "docs_store", make_store)


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Remove the features and modules that a page registers or imports."""
    known = set(sys.modules)
    with registry():
        yield monkeypatch
    for name in set(sys.modules) - known:
        if not hasattr(sys.modules[name], "__file__") or "site-packages" in str(
            sys.modules[name].__file__
        ):
            continue
        sys.modules.pop(name)


# laws


def test_every_command_is_matched_by_one_rule() -> None:
    found = {named(command): [rule.name for rule in rules_of(command)] for command in COMMANDS}
    assert {name: rules for name, rules in found.items() if len(rules) != 1} == {}


def test_every_rule_matches_a_command_and_has_a_reason_if_it_is_not_run() -> None:
    used = {rule.name for command in COMMANDS for rule in rules_of(command)}
    assert used == {rule.name for rule in RULES}
    assert all(bool(rule.reason) == (rule.how == NOT) for rule in RULES)


def test_every_block_has_a_tested_kind() -> None:
    assert {block.kind for block in all_blocks()} == set(KINDS)
    text = "\n".join(Path(ROOT, page).read_text(encoding="utf-8") for page in PAGES)
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(all_blocks())


def test_unknown_commands_match_no_rule() -> None:
    for text in (
        "curl example.org",
        "robust-fin deploy run=A",
        "python -m robust_fin.deploy run=A",
    ):
        assert rules_of(Command("README.md", 1, text)) == []


def test_windows_commands_equal_those_of_a_shell_block() -> None:
    shown = [block for block in all_blocks() if block.kind == "sh"]
    for block in (block for block in all_blocks() if block.kind == "bat"):
        text = block.text.replace("py -3.11", "python3.11").replace("Scripts", "bin")
        assert text.replace("\\", "/") in [one.text for one in shown if one.page == block.page]


# quick: commands that need no training


BY_CHOICES = by_choices()


@pytest.mark.parametrize("choices", BY_CHOICES, ids=" ".join)
def test_overrides_of_every_command_compose(choices: tuple[str, ...], tmp_path: Path) -> None:
    commands = BY_CHOICES[choices]  # their values can be combined
    for name, text in files_of(commands[0].page).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    words = [word for command in commands for word in first_job(command) if not is_choice(word)]
    chosen = [word for word in first_job(commands[0]) if is_choice(word)]
    found = [f"hydra.searchpath=[{tmp_path / 'conf'}]"] if choices[1] else []
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        assert compose(choices[0], overrides=[*found, *chosen, *words])


def first_job(command: Command) -> list[str]:
    """Return the overrides of a command; for a sweep those of its first job."""
    words = [word for word in command.overrides if "$(" not in word]
    return [_first_of(one) for one in OverridesParser.create().parse_overrides(words)]


def _first_of(override: Override) -> str:
    if not override.is_sweep_override():
        return override.input_line
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"


@pytest.mark.parametrize("command", of_kind(EXPAND), ids=named)
def test_make_targets_expand_to_valid_commands(command: Command) -> None:
    asked = [*command.words, "--dry-run", "VENV=.venv"]
    done = subprocess.run(asked, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        expanded = Command(command.page, command.line, line)
        if expanded.verb == "train":
            assert rule_of(expanded).name == "train"
            with initialize_config_dir(str(conf_folder()), version_base="1.3"):
                assert compose("train", overrides=first_job(expanded)).name


@pytest.mark.parametrize("page", [page for page in PAGES if files_of(page)])
def test_target_of_every_yaml_block_is_defined(page: str) -> None:
    for name, text in files_of(page).items():
        target = yaml.safe_load(text).get("_target_") if name.endswith(".yaml") else None
        if target is not None:
            module, _, thing = target.partition(".")
            assert re.search(rf"^(class|def) {thing}\(", files_of(page)[f"{module}.py"], re.M)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run(page: str, tmp_path: Path, own_names: pytest.MonkeyPatch) -> None:
    own_names.syspath_prepend(tmp_path)
    names: dict[str, object] = {"__name__": "block"}
    with contextlib.chdir(tmp_path):
        for block in (block for block in blocks_of(page) if block.kind == "python"):
            if block.file:
                (tmp_path / block.file).write_text(block.text, encoding="utf-8")
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names)


SHOWN = [pair for block in all_blocks() for pair in block.shown()]


@pytest.mark.parametrize(("text", "said"), SHOWN, ids=[text for text, _ in SHOWN])
def test_shown_output_equals_the_output_of_the_command(
    text: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    program, *words = shlex.split(text)
    assert program == "robust-fin"
    robust_fin.__main__.main(words)
    assert "".join(capfd.readouterr()) == said


# run: the commands that read what the others have left are quick


QUICK = ("predict", "evaluate", "replay")


def is_quick(command: Command) -> bool:
    return rule_of(command).name == "help" or command.verb in QUICK


def with_slow_ones_marked(commands: list[Command]) -> list[object]:
    return [
        pytest.param(one, id=named(one), marks=() if is_quick(one) else pytest.mark.slow)
        for one in commands
    ]


@pytest.mark.parametrize("command", with_slow_ones_marked(of_kind(RUN)))
def test_command_runs(command: Command, store: Path, tmp_path: Path) -> None:
    furnish(tmp_path, store, command.page)
    appended = rule_of(command).words(command)
    code, said = run_command(command, appended, tmp_path)
    assert code == 0, f"{command.text} {' '.join(appended)}\n{said[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("command", of_kind(HELP), ids=named)
def test_benchmark_flags_exist(command: Command, store: Path, tmp_path: Path) -> None:
    furnish(tmp_path, store, command.page)
    script = next(word for word in command.words if word.startswith("benchmarks/"))
    done = shell(f"python {script} --help", tmp_path)
    assert done.returncode == 0, done.stderr
    flags = {word for word in command.words if word.startswith("--")}
    assert {flag for flag in flags if flag not in done.stdout} == set()


def test_commands_that_need_devices_are_composed() -> None:
    assert {command.verb for command in of_kind(COMPOSE)} <= {"train", "doctor"}
    assert set(of_kind(COMPOSE)) <= set(with_settings())
