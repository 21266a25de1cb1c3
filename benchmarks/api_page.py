"""python benchmarks/api_page.py writes the list of public names in docs/api.md.

The names are those of `robust_fin.__all__`. Signatures and texts are read from the code, so the
page can be read in the repository without building the site.
"""

import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import robust_fin

DOCUMENT = Path(__file__).parent.parent / "docs" / "api.md"
BEGIN, END = "<!-- names: written by benchmarks/api_page.py -->", "<!-- end of names -->"
WIDTH = 96
_MODULES = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])")
_TITLE = re.compile(r"^(Args|Attributes|Returns|Raises|Examples|Shape):$")
_ENTRY = re.compile(r"^ {4}(?P<name>\w[\w, ]*): (?P<text>.*)$")


def public_object(name: str) -> Any:
    """Return the function or class that `from robust_fin import name` gives."""
    value = getattr(robust_fin, name)
    return getattr(value, name) if isinstance(value, ModuleType) else value


def signature_text(name: str, value: Any) -> str:
    """Format a signature, with one parameter per line when it does not fit on one line."""
    signature = inspect.signature(value)
    if inspect.isclass(value):
        signature = signature.replace(return_annotation=inspect.Signature.empty)
    line = _MODULES.sub("", f"{name}{signature}")
    if len(line) <= WIDTH:
        return line
    parameters = list(signature.parameters.values())
    kinds = [one.kind for one in parameters]
    lines = [_MODULES.sub("", str(one)) for one in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        lines.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returns = f" -> {line.split(') -> ', 1)[1]}" if ") -> " in line else ""
    return "\n".join([f"{name}(", *(f"    {one}," for one in lines), f"){returns}"])


def sections(doc: str) -> dict[str, list[str]]:
    """Split a docstring by its section titles; the text before the first title has the key ""."""
    parts: dict[str, list[str]] = {"": []}
    title = ""
    for line in doc.splitlines():
        if found := _TITLE.match(line):
            title = found[1]
            parts[title] = []
        else:
            parts[title].append(line)
    return parts


def entries(lines: list[str]) -> list[tuple[str, str]]:
    """Return the (name, text) pairs of an Args, Attributes or Raises section."""
    pairs: list[tuple[str, str]] = []
    for line in lines:
        if found := _ENTRY.match(line):
            pairs.append((found["name"], found["text"]))
        elif line.strip() and pairs:
            name, text = pairs.pop()
            pairs.append((name, f"{text} {line.strip()}"))
    return pairs


def members(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the public properties and methods of a class, each with its first line."""
    for name, member in vars(value).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property | cached_property):
            doc = (member.fget if isinstance(member, property) else member.func).__doc__
            yield name, first_line(doc)
        elif inspect.isfunction(member) or isinstance(member, classmethod):
            yield f"{name}()", first_line(inspect.unwrap(getattr(value, name)).__doc__)


def first_line(doc: str | None) -> str:
    """Return the first line of a docstring."""
    return inspect.cleandoc(doc or "").partition("\n")[0]


def entry(name: str) -> str:
    """Write one public name: heading, signature, first line, arguments, return value, errors."""
    value = public_object(name)
    parts = sections(inspect.getdoc(value) or "")
    blocks = [f"### {name}", f"```\n{signature_text(name, value)}\n```", parts[""][0]]
    listed = entries(parts.get("Args", []) + parts.get("Attributes", []))
    if listed:
        blocks.append("\n".join(f"- `{one}`: {text}" for one, text in listed))
    if parts.get("Returns"):
        blocks.append(f"Returns: {' '.join(line.strip() for line in parts['Returns']).strip()}")
    if raised := entries(parts.get("Raises", [])):
        blocks.append("Raises: " + " ".join(f"`{one}`: {text}" for one, text in raised))
    if inspect.isclass(value) and (shown := list(members(value))):
        table = ["| attribute or method | what it is |", "|---|---|"]
        blocks.append("\n".join([*table, *(f"| `{one}` | {text} |" for one, text in shown)]))
    return "\n\n".join(blocks)


def names_text() -> str:
    """Write all public names, in the order of `robust_fin.__all__`."""
    return "\n\n".join(entry(name) for name in robust_fin.__all__)


def main(document: Path = DOCUMENT) -> None:
    """Replace the text between the two markers."""
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n\n{names_text()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
