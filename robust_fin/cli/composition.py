"""Compose a command's config from YAML files and overrides, and explain overrides that fail."""

import inspect
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from robust_fin.cli.suggestions import (
    MISSPELT,
    NEEDS_QUOTES,
    closest,
    correct,
    describe_swept,
    keys_below,
    suggest,
    suggest_by_word,
    unreadable,
)
from robust_fin.errors import ConfigError
from robust_fin.runs.schema import (
    check_values,
    describe_value,
    format_error,
    key_types,
    register_schema,
)

EXPERIMENT = "experiment"
_UNKNOWN_KEY = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")
_UNKNOWN_CHOICE = re.compile(r"Could not find '([^']+)/([^'/]+)'")
_MISSING_EQUAL = re.compile(r"Error parsing override '([^'=]+)'\s+missing EQUAL")
_WRONG_TYPE = re.compile(r"Error merging override '?\+*([\w.]+)=([^\n]*)")
_SWEPT = re.compile(r"Ambiguous value for argument '(.*)'\n")
_UNKNOWN_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")
_PLAIN_VALUE = re.compile(r"\[.*\]|[^,()\[\]{}$]*")  # a value that is not swept
_FULL_KEY = re.compile(r"full_key: ([\w.]+)")
_WITHOUT_EXPERIMENTS = ("predict", "evaluate", "replay", "doctor")


@dataclass(frozen=True, slots=True)
class Composition:
    """A composed config and Hydra's own settings.

    Attributes:
        config: the config.
        hydra: Hydra's settings as YAML.
        folder: run folder, relative to the working directory.
        is_sweep: whether the config asks for a multirun.
        choices: group -> chosen YAML; None for an optional group without a choice.
    """

    config: DictConfig
    hydra: str
    folder: Path
    is_sweep: bool
    choices: Mapping[str, str | None]


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
    running = GlobalHydra.instance().hydra  # of the command that asks, which Hydra has started
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=verb):
            return compose(verb, overrides=list(words), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running


def compose_config(verb: str, words: Sequence[str]) -> Composition:
    """Compose the config of a command and restore Hydra's global state.

    Args:
        verb: name of a primary YAML such as train.
        words: overrides, as on the command line.

    Raises:
        ConfigError: an override matches no key or choice, or a value is not allowed.
    """
    register_schema()
    check_choices(words)
    try:
        return _composition(compose_with_hydra(verb, words), verb=verb, words=words)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain_error(error, verb=verb, words=words)) from error


def _composition(config: DictConfig, *, verb: str, words: Sequence[str]) -> Composition:
    """Check a composed config, and take Hydra's settings out of it."""
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
    check_values(config, verb=verb)
    return composition


def check_choices(words: Sequence[str]) -> None:
    """Raise ConfigError for a `group=VALUE` whose value is not a choice of the group.

    Hydra ends some, such as model=null, with a traceback. Swept values are left to Hydra, and all
    values where hydra.searchpath adds a folder with choices of the user.

    Args:
        words: overrides on the command line.
    """
    if any(word.lstrip("+").startswith("hydra.searchpath=") for word in words):
        return
    for word in words:
        group, equals, value = word.partition("=")
        group = group.lstrip("+")
        if equals and not group:
            raise ConfigError(f"{word} has no key; overrides are key=value, as --help shows")
        known = group_choices(group) if group in config_groups() else []
        if not known or value in known or not _PLAIN_VALUE.fullmatch(value):
            continue
        if not value.startswith("["):
            raise ConfigError(describe_unknown_choice(group, value))
        if group == "features":
            raise ConfigError(
                f"features={value} is not a choice. For a list of features write "
                f"features.names={value}; for a set of features one of {', '.join(known)}"
            )
        if group != EXPERIMENT:
            raise ConfigError(f"{word} must be one choice: {', '.join(known)}")


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
    if (match := _SWEPT.search(text)) and match[1] in words:
        return describe_swept(match[1], key_types(verb).get(match[1].partition("=")[0], ""))
    if isinstance(error, OverrideParseException) and (word := unreadable(words)):
        return _describe_unreadable(word, verb=verb)
    if match := _UNKNOWN_KEY.search(text):
        return describe_unknown_key(match[1], verb=verb, words=words)
    if (match := _WRONG_TYPE.search(text)) and match[1] in (types := key_types(verb)):
        return describe_value(match[1], match[2], types[match[1]])
    if (match := _UNKNOWN_ARGUMENT.search(text)) and (node := _FULL_KEY.search(text)):
        key = f"{node[1]}.{match[1]}"
        return f"{text}\n{describe_unknown_key(key, verb=verb, words=words)}"
    return text


def _describe_unreadable(word: str, *, verb: str) -> str:
    """Format the error for an override that Hydra's grammar does not read."""
    fault, corrected = correct(word)
    key, _, value = word.partition("=")
    kind = key_types(verb).get(key.strip(), "str")
    is_text = "str" in kind.split(" | ")
    if key.strip() in key_types(verb) and (
        not corrected or (fault == NEEDS_QUOTES and not is_text)
    ):
        return describe_value(key, value, kind)
    if not corrected:
        return f"{word} cannot be parsed: {fault}, as --help shows"
    try:
        check_choices([corrected])
    except ConfigError as error:
        return str(error)
    return f"{word} cannot be parsed: {fault}: write {shlex.quote(corrected)}"


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
    parent, _, name = key.rpartition(".")
    if name.startswith("_"):  # a key of Hydra's own, such as _target_
        return True
    nodes = [OmegaConf.select(config, k, throw_on_missing=False) for k in (parent, key) if parent]
    if any(isinstance(node, DictConfig) and "_target_" in node for node in nodes):
        arguments = _constructor_arguments(nodes[0])
        return arguments is None or name in arguments or isinstance(nodes[1], DictConfig)
    return key in keys_below(_closest_config(verb, words), "")


def _constructor_arguments(node: object) -> list[str] | None:
    """Return the arguments of a node's constructor; None if it takes any, or cannot be imported."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return None
    try:
        parameters = inspect.signature(get_object(str(node["_target_"]))).parameters.values()
    except (ImportError, HydraException, TypeError, ValueError):
        return None  # building it reports why
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def describe_unknown_choice(group: str, name: str) -> str:
    """Format the error for an unknown choice: the closest one, and all choices of the group."""
    known = group_choices(group)
    if not known:
        return f"there is no config group {group}{suggest(group, config_groups())}"
    hint = suggest(name, known, form=f"{_override_name(group)}={{}}") or "."
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
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else None
    if not isinstance(node, DictConfig):
        known = _candidate_keys(config, key, verb=verb)
        hint = suggest(key, known) or suggest_by_word(key, known)
        return f"{key} is not a key{hint or '; --help shows the most used, --cfg job all of them'}"
    arguments = _constructor_arguments(node)
    if arguments is not None and name in arguments and name not in node:
        return f"{key} is not among the defaults: write +{key}=VALUE, with a plus"
    if hint := suggest(key, _candidate_keys(config, key, verb=verb)):
        return f"{key} is not a key{hint}"
    names = ", ".join(str(name) for name in node if not str(name).startswith("_"))
    siblings = f". Keys of {parent}: {names or 'none'}"
    if arguments is None:  # some that the YAML does not name may exist
        siblings += f"; +{key}=VALUE adds one"
    return f"{key} is not a key{siblings}"


def describe_option(option: str, value: str, *, verb: str) -> str:
    """Format the error for an option that does not exist: the override that was meant, if any.

    Args:
        option: such as --seed.
        value: given to it; may be empty.
        verb: the command.
    """
    name = option.lstrip("-").replace("-", "_")
    config = _closest_config(verb, [])
    known = _candidate_keys(config, name, verb=verb) if name else []
    near = [name] if name in known else closest(name, known, above=MISSPELT)
    near = [f"+{EXPERIMENT}"] if name == EXPERIMENT else near
    written = " or ".join(f"{key}={value or 'VALUE'}" for key in near)
    hint = f"; did you mean {written}?" if near else "; settings are written key=value, without --."
    return f"{option} is not an option{hint} --help and --hydra-help list the options"


def _candidate_keys(config: DictConfig, key: str, *, verb: str) -> list[str]:
    known = list(keys_below(config, ""))
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
        if near := closest(word, group_choices(group), above=MISSPELT):
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
