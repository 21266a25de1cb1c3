"""The folder of a new run: it held no run before, and one command writes to it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from robust_fin.errors import ConfigError
from robust_fin.runtime.files import LOCK, create_folder, lock_folder
from robust_fin.runtime.terminal import command_hint

# any of these shows that a folder holds a run, finished or not, or a ranking of `select`
_OF_A_RUN = ("metrics.json", "checkpoints", "bundle/provenance.json", "select.json")


class NewRunFolder(Callback):
    """Hydra callback that creates the folder of a run or sweep, unless the user named one.

    Default names end with the second, and a second command may start in it: then the name gets a
    suffix.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Create hydra.run.dir."""
        self._create(config, "run")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Create hydra.sweep.dir."""
        self._create(config, "sweep")

    def _create(self, config: DictConfig, key: str) -> None:
        hydra = config.hydra
        if hydra.output_subdir is None or f"hydra.{key}.dir" in _keys(hydra.overrides.hydra):
            return
        with read_write(config), open_dict(config):
            hydra[key].dir = str(create_folder(Path(hydra[key].dir)))


def _keys(words: Sequence[str]) -> list[str]:
    return [word.partition("=")[0].lstrip("+") for word in words]


@contextlib.contextmanager
def claim_folder(words: Sequence[str]) -> Iterator[None]:
    """Be the only writer of the folder named by hydra.run.dir=FOLDER, if it is named.

    Args:
        words: overrides of the command line.

    Raises:
        ConfigError: the folder holds a run, or another command is working in it.
    """
    if "hydra.run.dir" not in _keys(words) or "hydra.output_subdir" in _keys(words):
        yield
        return
    *_, given = (
        word for word, key in zip(words, _keys(words), strict=True) if key == "hydra.run.dir"
    )
    folder = Path(str(OverridesParser.create().parse_override(given).value())).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        check_holds_no_run(folder)
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [LOCK]:  # nothing was started
                (folder / LOCK).unlink()
                folder.rmdir()


def check_holds_no_run(folder: Path) -> None:
    """Raise ConfigError if a folder holds a run, whose files a new run would replace."""
    held = [name for name in _OF_A_RUN if (folder / name).exists()]
    if held:
        raise ConfigError(
            f"{folder} already holds a run ({held[0]}). Continue it with "
            f"{command_hint('train', 'resume', folder)}, or give the new run another folder"
        )
