"""What is printed to be typed can be pasted: names with special characters, and wrong grammar."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from robust_fin.cli.command import run_command
from robust_fin.cli.composition import compose_config
from robust_fin.cli.suggestions import unquote
from robust_fin.errors import ConfigError
from robust_fin.runs.schema import register_schema
from robust_fin.runtime.terminal import command_hint, hydra_text, tensorboard_hint

NAMES = [
    *("plain", "top5/2026-01-31_10-00-00", "a b", "ES=F", "x#1", "@ES#C", "a,b", "x[1]", "a(1)"),
    *(
        "{a}",
        "Müller",
        "it's",
        'say "x"',
        "$HOME",
        "a;b",
        "a&b",
        "100%",
        "~x",
        "a\\b",
        "a\\'b",
        "!",
    ),
    *("null", "True", "12", "1e5", "-m", "a: b", "`ls`", "${x}", "tab\tx", 'end\\"', "end\\"),
]


def test_every_hint_can_be_pasted_into_a_shell() -> None:
    parser = OverridesParser.create()
    for name in NAMES:
        for folder in (name, f"/runs/{name}", f"../{name}"):
            words = shlex.split(command_hint("train", "resume", Path(folder)))
            assert words[:3] == ["python", "-m", "robust_fin.train"]
            (word,) = words[3:]
            assert unquote(word.removeprefix("resume=")) == folder  # what train reads
            node = OmegaConf.create({"resume": parser.parse_override(word).value()})
            assert node.resume == folder  # what Hydra reads
            assert shlex.split(tensorboard_hint(folder)) == ["tensorboard", "--logdir", folder]
    assert command_hint("train", "resume", "runs/a") == "python -m robust_fin.train resume=runs/a"


@pytest.mark.parametrize(
    "name", ["ES=F.csv", "@ES#C.csv", "ES_Müller.csv", "a,b.csv", "x[1].csv", "a(1).csv"]
)
def test_a_file_name_that_needs_quotes_is_shown_with_them(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config("train", [f"source.path={name}"])
    assert f"write 'source.path=\"{name}\"'" in str(caught.value)
    quoted = compose_config("train", [f"source.path={hydra_text(name)}"])
    assert quoted.config.source.path == name


def test_a_file_name_with_a_space_needs_no_quotes_of_hydra() -> None:
    assert compose_config("train", ["source.path=a b.csv"]).config.source.path == "a b.csv"


WRONG = {  # what is typed -> what the message names
    "features=[a,b": "write features.names=[a,b]",
    "model.hidden=)": "model.hidden=) must be a list of values",
    "model.hidden=[1,2": "a bracket is not closed: write 'model.hidden=[1,2]'",
    "model.hidden=[8,4]]": "a bracket is closed that was not opened: write 'model.hidden=[8,4]'",
    "model.hidden=8,4": "write 'model.hidden=[8,4]' for a list, or add -m",
    "seed=1,2": "seed=1,2 has several values: add -m to train once with each value",
    "seed=1,,2": "a value is missing beside a comma: write seed=1,2",
    "seed = 3": "spaces stand beside the equals sign: write seed=3",
    "seed=(1)": "seed=(1) must be a whole number from 0 to 4294967295",
    "seed:3": "overrides are key=value",
    "a b=3": "overrides are key=value, with no space in the key",
    "key=a b": "key is not a key",
    "name='x": "a quotation mark is not closed: write name=x",
    "name=a=b": "write 'name=\"a=b\"'",
    "name=ä": "write 'name=\"ä\"'",
    "source.columns={a: b": "a bracket is not closed: write 'source.columns={a: b}'",
    "features.names=[a,b)": "the brackets do not match: write 'features.names=[a,b]'",
    "=3": "=3 has no key",
}


def test_an_override_that_cannot_be_parsed_is_corrected_in_one_plain_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    register_schema()
    for word, named in WRONG.items():
        assert run_command(lambda _: pytest.fail("it ran"), config_name="train", argv=[word]) == 1
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert named in message
        assert message.count("\n") == 1
        assert not re.search(r"viable|mismatched|extraneous|hydra\.cc|EOF|Lexer", message)
        for written in re.findall(r"write ('[^']*')(?: for|$)", message):
            (corrected,) = shlex.split(written)
            OverridesParser.create().parse_override(corrected)
