"""Compose a command's config from YAML files and overrides, and explain overrides that fail."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from robust_fin.errors import ConfigError
from robust_fin.runs.schema import format_error, register_schema

EXPERIMENT = "experiment"
_UNKNOWN_KEY = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")
_UNKNOWN_CHOICE = re.compile(r"Could not find '([^']+)/([^'/]+)'")
_MISSING_EQUAL = re.compile(r"Error parsing override '([^'=]+)'\s+missing EQUAL")
_UNKNOWN_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")
_FULL_KEY = re.compile(r"full_key: ([\w.]+)")
_WITHOUT_EXPERIMENTS = ("predict", "evaluate", "replay", "doctor")
# similarity, from 0 to 1, above which two names count as alike, or as a misspelling of each other
_ALIKE, _MISSPELT = 0.5, 0.8
_NO_PATH_PENALTY = 0.05  # subtracted where the user left out the path of a key
_MAX_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True)
class Composition:
    """A composed config and Hydra's own settings.

    Attributes:
        config: the config.
        hydra: Hydra's settings as YAML.
        folder: run folder, relative to the working directory.
        is_sweep: whether the config asks for a multirun.
        choices: group -> chosen YAML.
    """

    config: DictConfig
    hydra: str
    folder: Path
    is_sweep: bool
    choices: Mapping[str, str]


def conf_folder() -> Path:
    """Return the folder of YAML files: conf/ of the source tree, else the copy in the wheel.

    The source tree comes first because an editable install can leave a stale copy in the package.
    """
    package = Path(__file__).parents[1]
    beside = package.parent / "conf"
    return beside if (package.parent / "pyproject.toml").is_file() else package / "conf"


def config_groups() -> list[str]:
    """Return the names of the config groups."""
    return sorted(
        path.name for path in conf_folder().iterdir() if path.is_dir() and path.name != "hydra"
    )


def group_choices(group: str) -> list[str]:
    """Return the choices of a config group."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def first_comment(path: Path) -> list[str]:
    """Return the comment lines at the top of a YAML file, without Hydra's `# @` directives."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.removeprefix("#").strip())
    return lines


def compose_with_hydra(verb: str, words: Sequence[str]) -> DictConfig:
    """Compose a config with Hydra's settings under `hydra`; restore Hydra's global state.

    Args:
        verb: name of a primary YAML such as train; its schema is registered.
        words: overrides, as on the command line.
    """
    with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=verb):
        return compose(verb, overrides=list(words), return_hydra_config=True)


def compose_config(verb: str, words: Sequence[str]) -> Composition:
    """Compose the config of a command and restore Hydra's global state.

    Args:
        verb: name of a primary YAML such as train.
        words: overrides, as on the command line.

    Raises:
        ConfigError: an override matches no key or choice.
    """
    register_schema()
    try:
        config = compose_with_hydra(verb, words)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain_error(error, verb=verb, words=words)) from error
    check_added_keys(config, verb=verb, words=words)
    hydra = config.hydra
    composition = Composition(
        config,
        OmegaConf.to_yaml(hydra),
        Path(hydra.run.dir),
        hydra.mode is RunMode.MULTIRUN,
        dict(hydra.runtime.choices),
    )
    with open_dict(config):
        del config["hydra"]
    return composition


def explain_error(error: BaseException, *, verb: str, words: Sequence[str]) -> str:
    """Format an error and suggest the closest key or choice where a name is unknown.

    Args:
        error: of Hydra, or ours.
        verb: command whose config it is.
        words: overrides on the command line.
    """
    text = format_error(error)
    if match := _UNKNOWN_CHOICE.search(text):
        return describe_unknown_choice(match[1], match[2])
    if match := _MISSING_EQUAL.search(text):
        return _describe_missing_equal(match[1])
    if match := _UNKNOWN_KEY.search(text):
        return describe_unknown_key(match[1], verb=verb, words=words)
    if (match := _UNKNOWN_ARGUMENT.search(text)) and (node := _FULL_KEY.search(text)):
        key = f"{node[1]}.{match[1]}"
        return f"{text}\n{describe_unknown_key(key, verb=verb, words=words)}"
    return text


def check_added_keys(config: DictConfig, *, verb: str, words: Sequence[str]) -> None:
    """Raise ConfigError for a `+key=value` that nothing reads.

    Hydra adds any key that is asked for. A constructor refuses an unknown argument, but settings
    that belong to no constructor would be ignored.

    Args:
        config: composed config.
        verb: command whose config it is.
        words: overrides on the command line.
    """
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if not word.startswith("+") or key.startswith("hydra") or "/" in key or "@" in key:
            continue
        if key not in config_groups() and not _is_read(config, key, verb=verb, words=words):
            raise ConfigError(describe_unknown_key(key, verb=verb, words=words))


def _is_read(config: DictConfig, key: str, *, verb: str, words: Sequence[str]) -> bool:
    """Return whether a constructor reads the key, or the key exists without the override."""
    parent = key.rpartition(".")[0]
    nodes = [OmegaConf.select(config, k, throw_on_missing=False) for k in (parent, key) if parent]
    if any(isinstance(node, DictConfig) and "_target_" in node for node in nodes):
        return True
    return key in _keys(_closest_config(verb, words), "")


def describe_unknown_choice(group: str, name: str) -> str:
    """Format the error for an unknown choice: the closest one, and all choices of the group."""
    known = group_choices(group)
    if not known:
        return f"there is no config group {group}{_suggest(group, config_groups())}"
    hint = _suggest(name, known, form=f"{_override_name(group)}={{}}") or "."
    return f"{_override_name(group)}={name} does not exist{hint} Choices: {', '.join(known)}"


def describe_unknown_key(key: str, *, verb: str, words: Sequence[str]) -> str:
    """Format the error for an unknown key: the closest match, or the keys of the same group.

    Args:
        key: dotted key.
        verb: command whose config it is.
        words: overrides on the command line; their choices decide which keys exist.
    """
    if key == EXPERIMENT:
        return f"{EXPERIMENT} must be added to the defaults: write +{EXPERIMENT}=NAME, with a plus"
    config = _closest_config(verb, words)
    hint = _suggest(key, _candidate_keys(config, key, verb=verb))
    parent, _, _ = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent and not hint else None
    siblings = ""
    if isinstance(node, DictConfig):
        names = ", ".join(str(name) for name in node if not str(name).startswith("_"))
        siblings = f". Keys of {parent}: {names}; +{key}=VALUE adds one"
    return f"{key} is not a key{hint}{siblings}"


def _candidate_keys(config: DictConfig, key: str, *, verb: str) -> list[str]:
    known = list(_keys(config, ""))
    if verb not in _WITHOUT_EXPERIMENTS:
        known.append(f"+{EXPERIMENT}")
    if key.split(".")[0] != "hydra":
        known = [name for name in known if not name.startswith("hydra")]
    if "." not in key:  # the user gave it a value, which only a leaf can have
        known = [name for name in known if "." not in name or not _has_children(name, known)]
    return known


def _has_children(key: str, known: Sequence[str]) -> bool:
    return any(name.startswith(f"{key}.") for name in known)


def _describe_missing_equal(word: str) -> str:
    for group in (EXPERIMENT, *config_groups()):
        if near := _closest(word, group_choices(group), above=_MISSPELT):
            return f"{word} has no value; did you mean {_override_name(group)}={near[0]}?"
    return f"{word} has no value; overrides are key=value, as --help shows"


def _override_name(group: str) -> str:
    """Return the group as an override writes it: experiments are added with a plus."""
    return f"+{group}" if group == EXPERIMENT else group


def _closest_config(verb: str, words: Sequence[str]) -> DictConfig:
    """Compose the config with the user's choices, or without them where they fail."""
    choices = [word for word in words if word.lstrip("+").partition("=")[0] in config_groups()]
    for overrides in (choices, []):
        try:
            return compose_with_hydra(verb, overrides)
        except (HydraException, OmegaConfBaseException):
            continue
    raise AssertionError(f"conf/{verb}.yaml does not compose")


def _keys(node: Any, parent: str) -> Iterator[str]:
    if not isinstance(node, DictConfig):
        return
    for name in map(str, node):
        key = f"{parent}.{name}" if parent else name
        if name.startswith("_"):
            continue
        yield key
        if not (OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name)):
            yield from _keys(node[name], key)


def _suggest(name: str, known: Sequence[str], *, form: str = "{}") -> str:
    near = _closest(name, known, above=_ALIKE)
    return f"; did you mean {' or '.join(form.format(k) for k in near)}?" if near else ""


def _closest(name: str, known: Sequence[str], *, above: float) -> list[str]:
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
        return alike - _NO_PATH_PENALTY if alike > _MISSPELT else 0.0
    if len(left) != len(right):
        return 0.0
    pairs = zip(left, right, strict=True)
    return min(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)
