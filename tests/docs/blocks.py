"""Parse the fenced code blocks of the README and docs/, and their commands."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md"))))
_FENCE = re.compile(r"^```(?P<kind>[\w-]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(^|\s)#.*$", re.MULTILINE)
_SETTING = re.compile(r"[A-Z_]+=\S*$")
_VERB = re.compile(r"robust_fin\.(\w+)$")
_NAMED = re.compile(r"(# @package _global_\n)?# (?P<path>[\w/]+\.(py|yaml))\n")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        page: path relative to the project root.
        line: line of the page on which the text begins, from 1.
        kind: language of the fence; "" for text that is shown, not run.
        text: content of the block.
    """

    page: str
    line: int
    kind: str
    text: str

    @property
    def file(self) -> str | None:
        """The file whose name the first line gives as a comment, or None."""
        named = _NAMED.match(self.text)
        return named["path"] if named else None

    def shown(self) -> list[tuple[str, str]]:
        """Return the commands after a dollar sign, each with its output."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        return [(said.partition("\n")[0], said.partition("\n")[2]) for said in parts]

    def commands(self) -> "list[Command]":
        """Return the commands of a shell block, each on one line and without comments."""
        joined = self.text.replace("\\\n", " ")
        lines = _COMMENT.sub("", joined).splitlines()
        return [Command(self.page, self.line, line.strip()) for line in lines if line.strip()]


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a shell block.

    Attributes:
        page: path relative to the project root.
        line: line of the page on which the block begins.
        text: the command line.
    """

    page: str
    line: int
    text: str

    @property
    def words(self) -> tuple[str, ...]:
        """The words without leading environment variables and the folder of the program."""
        words = _split(self.text)
        while _SETTING.match(words[0]):
            words = words[1:]
        return (words[0].removeprefix(".venv/bin/"), *words[1:])

    @property
    def verb(self) -> str | None:
        """The robust_fin command that it runs, or None."""
        if self.words[0] == "robust-fin":
            named = [word for word in self.words[1:] if not word.startswith("-")]
            return named[0] if named else None
        places = [_VERB.fullmatch(word) for word in self.words]
        found = [place[1] for place in places if place]
        return found[0] if found else None

    @property
    def given(self) -> tuple[str, ...]:
        """The words after the robust_fin command."""
        names = (f"robust_fin.{self.verb}", self.verb)
        first = next(number for number, word in enumerate(self.words) if word in names)
        return self.words[first + 1 :]

    @property
    def overrides(self) -> tuple[str, ...]:
        """The words after the robust_fin command that are no flags."""
        return tuple(word for word in self.given if not word.startswith("-"))

    def says(self, pattern: str) -> bool:
        """Return True if the pattern matches one of the words completely."""
        return any(re.fullmatch(pattern, word) for word in self.words)


@cache
def _split(text: str) -> list[str]:
    return shlex.split(text)


@cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """Return all blocks of a page in order."""
    text = Path(ROOT, page).read_text(encoding="utf-8")
    return tuple(
        Block(page, text.count("\n", 0, found.start("text")) + 1, found["kind"], found["text"])
        for found in _FENCE.finditer(text)
    )


def all_blocks() -> list[Block]:
    """Return the blocks of all pages."""
    return [block for page in PAGES for block in blocks_of(page)]


def all_commands() -> list[Command]:
    """Return the commands of all shell blocks, each text once."""
    found: dict[str, Command] = {}
    for block in all_blocks():
        for command in block.commands() if block.kind == "sh" else ():
            found.setdefault(" ".join(command.text.split()), command)
    return list(found.values())


def files_of(page: str) -> dict[str, str]:
    """Return the files given by the blocks of a page: path -> text."""
    return {block.file: block.text for block in blocks_of(page) if block.file}
