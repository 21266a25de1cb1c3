"""Suggestions for an override that Hydra's grammar cannot read, or for an unknown name."""

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from robust_fin.errors import ConfigError
from robust_fin.runtime.terminal import hydra_text

# similarity, from 0 to 1, above which two names count as alike, or as a misspelling of each other
ALIKE, MISSPELT = 0.5, 0.8
_NO_PATH_PENALTY = 0.05  # subtracted where the user left out the path of a key
_MAX_SUGGESTIONS = 3
_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@-]*", re.ASCII)
_SPECIAL = re.compile(r"[=#@,()\[\]{}\s:%'\"]|[^\x00-\x7f]")
_PATHS = ("run", "out", "record", "resume", "history", "ledger")  # and every key with path in it
NEEDS_QUOTES = (
    "a file name or a text with spaces, =, #, @, commas, brackets or letters beyond ASCII needs "
    "quotes, for Hydra and for the shell"
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def unreadable(words: Sequence[str]) -> str | None:
    """Return the first override that Hydra's grammar does not read; None if it reads all."""
    return next((word for word in words if not _is_readable(word)), None)


def correct(word: str) -> tuple[str, str]:
    """Return what is wrong with an override, and the override that was probably meant.

    Args:
        word: override that Hydra's grammar does not read.

    Returns:
        The fault, and an override that can be read; empty if none is likely.
    """
    key, equals, value = (part.strip() for part in word.partition("="))
    if not equals or not _KEY.fullmatch(key):
        return "overrides are key=value, with no space in the key", ""
    plain = re.sub(r"^[\s)\]},]+|(?<=,)[\s,]+|,\s*$", "", value)
    attempts = (
        ("spaces stand beside the equals sign", value),
        ("a bracket is not closed", _close_brackets(value)),
        ("a bracket is closed that was not opened", _drop_stray_brackets(value)),
        ("the brackets do not match", _close_brackets(_drop_stray_brackets(value))),
        ("a value is missing beside a comma", plain),
    )
    if not is_path(key, value):
        for fault, text in attempts:
            if text and (text != value or value != word.partition("=")[2]):
                corrected = f"{key}={text}"
                if _is_readable(corrected):
                    return fault, corrected
    bare = value.strip("'\"") if value[:1] in ("'", '"') else value
    if not bare.strip("()[]{},'\" "):
        return "there is no value after the equals sign", ""
    fault = NEEDS_QUOTES if bare == value else "a quotation mark is not closed"
    return fault, f"{key}={hydra_text(bare)}"


def describe_swept(word: str, kind: str) -> str:
    """Describe what to write in place of several values without -m.

    Args:
        word: the override.
        kind: of the key, in the notation of key_types.yaml.
    """
    key, _, value = word.partition("=")
    text, listed = (shlex.quote(f"{key}={new}") for new in (hydra_text(value), f"[{value}]"))
    if is_path(key, value):
        return f"{word} cannot be parsed: {NEEDS_QUOTES}: write {text}"
    known = kind.split(" | ")
    ways = [f"write {listed} for a list"] if "list of" in kind else []
    ways += [f"write {text} for a text"] if "str" in known else []
    ways.append("add -m to train once with each value")
    return f"{word} has several values: {', or '.join(ways)}"


def is_path(key: str, value: str) -> bool:
    """Return whether an override probably sets a path that is not quoted."""
    key = key.lstrip("+")
    named = key in _PATHS or "path" in key or bool(re.search(r"\.[a-z]+$|/", value))
    quoted = value[:1] in ("'", '"', "[", "{")
    return named and not quoted and _SPECIAL.search(value) is not None


def unquote(value: str) -> str:
    """Return the text of a value on the command line that Hydra does not read, without its quotes.

    Raises:
        ConfigError: the quotes are not closed.
    """
    if value[:1] not in ("'", '"'):
        return value
    try:
        text = OverridesParser.create().parse_override(f"value={value}").value()
    except HydraException as error:
        raise ConfigError(f"{value} has a quotation mark that is not closed") from error
    return str(text).replace("\\${", "${")


def parse_modules(value: str) -> list[str]:
    """Parse `modules=[MINE]` of a command line that Hydra does not read.

    Raises:
        ConfigError: the value is not a list of module names.
    """
    try:
        names = OverridesParser.create().parse_override(f"modules={value}").value()
    except HydraException as error:
        raise ConfigError(f"modules={value} must be a list, such as modules=[my_net]") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"modules={value} must be a list, such as modules=[my_net]")
    return names


def _is_readable(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _close_brackets(value: str) -> str:
    """Close the brackets that are open at the end, innermost first."""
    held: list[str] = []
    for character in value:
        if character in _CLOSING:
            held.append(_CLOSING[character])
        elif held and character == held[-1]:
            held.pop()
    return value + "".join(reversed(held))


def _drop_stray_brackets(value: str) -> str:
    """Leave out closing brackets that nothing opens."""
    held: list[str] = []
    kept = []
    for character in value:
        if character in _CLOSING.values():
            if held[-1:] != [character]:
                continue
            held.pop()
        elif character in _CLOSING:
            held.append(_CLOSING[character])
        kept.append(character)
    return "".join(kept).strip()


def keys_below(node: Any, parent: str) -> Iterator[str]:
    """Yield the dotted keys of a config node; those that Hydra reads, such as _target_, not."""
    if not isinstance(node, DictConfig):
        return
    for name in map(str, node):
        key = f"{parent}.{name}" if parent else name
        if name.startswith("_"):
            continue
        yield key
        if not (OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name)):
            yield from keys_below(node[name], key)


def suggest(name: str, known: Sequence[str], *, form: str = "{}") -> str:
    """Format the question whether a similar name was meant; empty if none is similar."""
    near = closest(name, known, above=ALIKE)
    return f"; did you mean {' or '.join(form.format(k) for k in near)}?" if near else ""


def suggest_by_word(name: str, known: Sequence[str]) -> str:
    """Suggest the keys whose last part is one of the words of a name: num_workers, workers."""
    near = [key for key in known if key.rpartition(".")[2] in name.split("_")]
    return f"; did you mean {' or '.join(near)}?" if 0 < len(near) <= _MAX_SUGGESTIONS else ""


def closest(name: str, known: Sequence[str], *, above: float) -> list[str]:
    """Return the most similar names; none where all are dissimilar or too many are equal."""
    scores = {k: _similarity(name, k) for k in known}
    best = max(scores.values(), default=0.0)
    near = [k for k in known if scores[k] == best]
    return sorted(near) if best > above and len(near) <= _MAX_SUGGESTIONS else []


def _similarity(name: str, other: str) -> float:
    """Compare dotted keys part by part, so that a long common path does not make them alike.

    A name without a path is compared with the last part of a key, and must nearly equal it.
    """
    left, right = name.split("."), other.split(".")
    if len(left) == 1 < len(right):
        alike = _similarity(name, right[-1])
        return alike - _NO_PATH_PENALTY if alike > MISSPELT else 0.0
    if len(left) != len(right):
        return 0.0
    pairs = zip(left, right, strict=True)
    return min(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)
