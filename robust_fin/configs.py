"""The folder of YAML files, what lies in it, and what a verb's command line composes to."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

EXPERIMENT = "experiment"


def conf_folder() -> Path:
    """The folder of YAML files: inside the package in a wheel, beside it in a source tree.

    The source tree comes first, because an editable install can leave a stale copy in the package.
    """
    package = Path(__file__).parent
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
