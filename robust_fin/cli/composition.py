"""Compose a command's config from YAML files and overrides, and explain words that match no key."""

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
from robust_fin.runs.settings import readable, register_schema

EXPERIMENT = "experiment"


def conf_folder() -> Path:
    """The folder of YAML files: inside the package in a wheel, beside it in a source tree.

    The source tree comes first, because an editable install can leave a stale copy in the package.
    """
    package = Path(__file__).parents[1]
    beside = package.parent / "conf"
    return beside if (package.parent / "pyproject.toml").is_file() else package / "conf"


def groups() -> list[str]:
    """Names of the config groups."""
    return sorted(
        path.name for path in conf_folder().iterdir() if path.is_dir() and path.name != "hydra"
    )


def choices(group: str) -> list[str]:
    """What a group can be."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def first_comment(path: Path) -> list[str]:
    """Lines of the comment that a YAML begins with; Hydra's own directives are none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            found.append(line.removeprefix("#").strip())
    return found


def composed_whole(verb: str, words: Sequence[str]) -> DictConfig:
    """A verb's config with Hydra's own below `hydra`; Hydra's state is left as it was.

    Args:
        verb: the name of a primary YAML, such as train; its schema is registered.
        words: overrides, as on the command line.
    """
    with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=verb):
        return compose(verb, overrides=list(words), return_hydra_config=True)


_NO_KEY = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")
_NO_CHOICE = re.compile(r"Could not find '([^']+)/([^'/]+)'")
_NO_EQUAL = re.compile(r"Error parsing override '([^'=]+)'\s+missing EQUAL")
_NO_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")
_FULL_KEY = re.compile(r"full_key: ([\w.]+)")
_LIKE, _SLIP = 0.5, 0.8  # share of letters in order that makes two names alike, or nearly one
_BARE = 0.05  # by how much less a key is meant whose path is left out
_FEW = 3


def explained(error: BaseException, *, verb: str, words: Sequence[str]) -> str:
    """`readable`, and where a word names nothing what does that is most like it.

    Args:
        error: of Hydra, or ours.
        verb: whose config it is.
        words: of the command line.
    """
    text = readable(error)
    if found := _NO_CHOICE.search(text):
        return no_choice(found[1], found[2])
    if found := _NO_EQUAL.search(text):
        return _no_override(found[1])
    if (found := _NO_KEY.search(text)) is not None:
        return no_key(found[1], verb=verb, words=words)
    if (found := _NO_ARGUMENT.search(text)) and (node := _FULL_KEY.search(text)):
        return f"{text}\n{no_key(f'{node[1]}.{found[1]}', verb=verb, words=words)}"
    return text


def require_known(config: DictConfig, *, verb: str, words: Sequence[str]) -> None:
    """Refuse a `+key=value` that nothing would read.

    Hydra adds what is asked for. A constructor refuses what it does not know; settings that are
    not a constructor's would take it in silence.

    Args:
        config: as composed.
        verb: whose it is.
        words: of the command line.

    Raises:
        ConfigError: names the key, and the one most like it.
    """
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if not word.startswith("+") or key.startswith("hydra") or "/" in key or "@" in key:
            continue
        if key not in groups() and not _is_read(config, key, verb=verb, words=words):
            raise ConfigError(no_key(key, verb=verb, words=words))


def _is_read(config: DictConfig, key: str, *, verb: str, words: Sequence[str]) -> bool:
    """By a constructor, its own or that of the node it is added to; or it was there before."""
    above = key.rpartition(".")[0]
    nodes = [OmegaConf.select(config, one, throw_on_missing=False) for one in (above, key) if above]
    if any(isinstance(one, DictConfig) and "_target_" in one for one in nodes):
        return True
    return key in _keys(_nearest_config(verb, words), "")


def no_choice(group: str, name: str) -> str:
    """That a group has no such choice, which is most like it, and which there are."""
    known = choices(group)
    if not known:
        return f"there are no settings called {group}{_meant(group, groups())}"
    meant = _meant(name, known, form=f"{_signed(group)}={{}}") or "."
    return f"{_signed(group)}={name} is no choice{meant} There are {', '.join(known)}"


def no_key(key: str, *, verb: str, words: Sequence[str]) -> str:
    """That there is no such key, and which is most like it; else those beside it.

    Args:
        key: dotted.
        verb: whose config it was sought in.
        words: of the command line, whose choices decide which keys there are.
    """
    if key == EXPERIMENT:
        return f"{EXPERIMENT} is added to the defaults: write +{EXPERIMENT}=NAME, with a plus"
    config = _nearest_config(verb, words)
    known = list(_keys(config, ""))
    if verb not in ("predict", "evaluate", "replay", "doctor"):
        known.append(f"+{EXPERIMENT}")
    if key.split(".")[0] != "hydra":
        known = [one for one in known if not one.startswith("hydra")]
    if "." not in key:  # and it has a value, which only the last parts of keys can be given
        known = [one for one in known if not ("." in one and _has_below(one, known))]
    meant = _meant(key, known)
    above, _, _ = key.rpartition(".")
    node = OmegaConf.select(config, above) if above and not meant else None
    beside = ""
    if isinstance(node, DictConfig):
        names = ", ".join(str(one) for one in node if not str(one).startswith("_"))
        beside = f". Below {above} there are {names}; +{key}=VALUE adds another"
    return f"{key} is not a key{meant}{beside}"


def _has_below(key: str, known: Sequence[str]) -> bool:
    return any(one.startswith(f"{key}.") for one in known)


def _no_override(word: str) -> str:
    """Of a word that sets nothing."""
    for group in (EXPERIMENT, *groups()):
        if near := _nearest(word, choices(group), like=_SLIP):
            return f"{word} sets nothing; did you mean {_signed(group)}={near[0]}?"
    return f"{word} sets nothing; words are key=value, as --help shows"


def _signed(group: str) -> str:
    """Experiments are added to the defaults, other groups are in them."""
    return f"+{group}" if group == EXPERIMENT else group


def _nearest_config(verb: str, words: Sequence[str]) -> DictConfig:
    """With as many of the choices that were made as can be composed."""
    chosen = [one for one in words if one.lstrip("+").partition("=")[0] in groups()]
    for given in (chosen, []):
        try:
            return composed_whole(verb, given)
        except (HydraException, OmegaConfBaseException):
            continue
    raise AssertionError(f"conf/{verb}.yaml does not compose")


def _keys(node: Any, above: str) -> Iterator[str]:
    if not isinstance(node, DictConfig):
        return
    for name in map(str, node):
        key = f"{above}.{name}" if above else name
        if name.startswith("_"):
            continue
        yield key
        if not (OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name)):
            yield from _keys(node[name], key)


def _meant(name: str, known: Sequence[str], *, form: str = "{}") -> str:
    near = _nearest(name, known, like=_LIKE)
    return f"; did you mean {' or '.join(form.format(one) for one in near)}?" if near else ""


def _nearest(name: str, known: Sequence[str], *, like: float) -> list[str]:
    """Those most like a name, where any is; few, or none where it could be many."""
    scored = {one: _likeness(name, one) for one in known}
    best = max(scored.values(), default=0.0)
    found = [one for one in known if scored[one] == best]
    return sorted(found) if best > like and len(found) <= _FEW else []


def _likeness(name: str, other: str) -> float:
    """By letters in order; of dotted keys part by part, the least counts.

    So a long common path does not make two keys alike. A bare name is held against the last parts,
    and must be one of them but for a slip.
    """
    ours, theirs = name.split("."), other.split(".")
    if len(ours) == 1 < len(theirs):
        alike = _likeness(name, theirs[-1])
        return alike - _BARE if alike > _SLIP else 0.0
    if len(ours) != len(theirs):
        return 0.0
    pairs = zip(ours, theirs, strict=True)
    return min(difflib.SequenceMatcher(None, one, two).ratio() for one, two in pairs)


@dataclass(frozen=True, slots=True)
class Composition:
    """What a command line of a verb comes to.

    Attributes:
        config: the settings.
        hydra: Hydra's own, as YAML; its resolvers are Hydra's.
        folder: where the run would go, relative to the working directory.
        is_sweep: whether the settings ask for many runs.
        choices: what was chosen of each group.
    """

    config: DictConfig
    hydra: str
    folder: Path
    is_sweep: bool
    choices: Mapping[str, str]


def composed(verb: str, words: Sequence[str]) -> Composition:
    """Compose the config of a verb; whatever Hydra had in hand before is there again after.

    Args:
        verb: the name of a primary YAML, such as train.
        words: overrides, as on the command line.

    Raises:
        ConfigError: a word names no key or choice.
    """
    register_schema()
    try:
        whole = composed_whole(verb, words)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explained(error, verb=verb, words=words)) from error
    require_known(whole, verb=verb, words=words)
    hydra = whole.hydra
    found = Composition(
        whole,
        OmegaConf.to_yaml(hydra),
        Path(hydra.run.dir),
        hydra.mode is RunMode.MULTIRUN,
        dict(hydra.runtime.choices),
    )
    with open_dict(whole):
        del whole["hydra"]
    return found
