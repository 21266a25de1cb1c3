"""What a checkpoint comes from: config, bars, versions; and whether a run may go on from it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from robust_fin.bundle import provenance, read_config, read_provenance
from robust_fin.errors import ConfigError, ResumeError
from robust_fin.market.facts import BarFacts
from robust_fin.training.checkpoint_files import BEST, LAST, PREVIOUS, mend, read_checkpoint, seal

log = logging.getLogger(__name__)

CHECKPOINTS, REFIT = "checkpoints", "refit"
_LONGER = "trainer.max_"  # what a run that goes on may change
_BARS = ("data_sha256", "data", "rows_in", "first_bar", "last_bar")
_SHOWN = 5  # differences in a message


def lineage(run: Path, stage: Path) -> dict[str, Any]:
    """What a checkpoint keeps of the run that writes it.

    Args:
        run: the run folder; empty of a bundle where a fit stands alone.
        stage: folder of the checkpoint; one of a refit keeps which choice it follows.
    """
    choice = stage.parent / LAST
    if not (run / "bundle").is_dir():
        return {"config": {}, "provenance": {}, "choice": None}
    return {
        "config": dotted(read_config(run)),
        "provenance": read_provenance(run),
        "choice": seal(choice) if choice.is_file() else None,
    }


def require_resumable(run: Path, *, max_epochs: int | None) -> None:
    """Make the checkpoints of a run ready to go on from.

    Args:
        run: the run folder.
        max_epochs: that it is asked to go on to; None or -1 for no limit.

    Raises:
        ResumeError: no checkpoint is whole, one holds code, or the config is not the one that the
            run was started with.
        ConfigError: the run is already past max_epochs.
    """
    folder = run / CHECKPOINTS
    for stage in (folder, folder / REFIT):
        mend(stage)
    if not (folder / LAST).is_file():
        log.warning("%s has no checkpoint yet; the run starts anew", run)
        return
    kept = read_checkpoint(folder / LAST)
    _require_same(
        _but_longer(kept["lineage"]["config"]),
        _but_longer(dotted(read_config(run))),
        what=f"{run / 'bundle' / 'config.yaml'} is not the config that the run was started with",
        remedy="Put it back, or start another run with other settings",
    )
    done = kept["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and -1 < max_epochs < done:
        raise ConfigError(
            f"trainer.max_epochs={max_epochs} is fewer than the {done} epochs that the run has had"
        )


def remove_checkpoints(run: Path) -> None:
    """Remove those of an earlier run in the same folder, which the new one must not go on from."""
    folder = run / CHECKPOINTS
    for stage in (folder, folder / REFIT):
        for name in (LAST, PREVIOUS, BEST):
            (stage / name).unlink(missing_ok=True)


def require_same_bars(run: Path, bars: BarFacts) -> None:
    """Refuse to go on with other bars; warn of other versions of what computes.

    Raises:
        ResumeError: names what differs.
    """
    now, last = provenance(bars), run / CHECKPOINTS / LAST
    before = [read_provenance(run)]
    if last.is_file():
        before.append(read_checkpoint(last)["lineage"]["provenance"])
    for one in before:
        if one and one["data_sha256"] != now["data_sha256"]:
            _require_same(
                {key: one[key] for key in _BARS},
                {key: now[key] for key in _BARS},
                what="the bars are not those that the run was started with",
                remedy="Put the file back, or start another run",
            )
    _warn_of_versions(before[0].get("versions", {}), now["versions"])


def refit_goes_on(run: Path) -> bool:
    """Whether the refit's checkpoint follows the choice as it is now, and was to go as far."""
    folder = run / CHECKPOINTS
    if not (folder / REFIT / LAST).is_file() or not (folder / LAST).is_file():
        return False
    kept = read_checkpoint(folder / REFIT / LAST)["lineage"]
    return kept["choice"] == seal(folder / LAST) and kept["config"] == dotted(read_config(run))


def dotted(config: DictConfig) -> dict[str, Any]:
    """Values by their keys, such as `optimizer.lr`."""
    return _flat(OmegaConf.to_container(config, resolve=True), "")


def _flat(node: Any, key: str) -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {key: node}
    below = [_flat(value, f"{key}.{name}" if key else str(name)) for name, value in node.items()]
    return {name: value for part in below for name, value in part.items()}


def _but_longer(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(_LONGER)}


def _require_same(
    before: Mapping[str, Any], now: Mapping[str, Any], *, what: str, remedy: str
) -> None:
    absent = "not there"
    differ = [
        f"{key} is {now.get(key, absent)}, was {before.get(key, absent)}"
        for key in {**before, **now}
        if now.get(key, absent) != before.get(key, absent)
    ]
    if differ:
        more = f"; and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        raise ResumeError(f"{what}: {'; '.join(differ[:_SHOWN])}{more}. {remedy}")


def _warn_of_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differ = [f"{name} {now.get(name)} (was {old})" for name, old in before.items()
              if now.get(name) != old]  # fmt: skip
    if differ:
        log.warning(
            "the run was started with other versions, and may go on with other numbers in the last "
            "digits: %s",
            ", ".join(differ),
        )
