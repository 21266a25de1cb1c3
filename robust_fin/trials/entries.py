"""What a line of the ledger says: a trial, or a look at the lockbox."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

Figures = Mapping[str, float | int | None]
# how and where a run is made, not what comes out of it; the bars are known by their fingerprint
_UNSEEN = frozenset({
    "name", "ledger", "threads", "verbose", "score_batch_size", "cache", "hardware", "logger",
    "report", "debug.traceback", "debug.check", "engine", "predictions", "baselines", "instrument",
    "callbacks.progress", "callbacks.lr", "callbacks.histograms", "checkpoint.every_n_steps",
    "stability.keep_every_n_steps", "stability.diagnose_every_n_steps", "population.workers",
    "population.steps_per_call",
    "population.block", "source.path", "source.vix_path", "source.block_rows",
    "trainer.accelerator", "trainer.strategy", "trainer.log_every_n_steps",
    "trainer.enable_checkpointing", "trainer.enable_progress_bar",
    "trainer.enable_model_summary", "trainer.enable_autolog_hparams", "trainer.benchmark",
    "trainer.inference_mode", "trainer.profiler", "trainer.num_sanity_val_steps", "sweep",
    "executor",
})  # fmt: skip
_LISTS = ("seeds", "lr", "weight_decay", "delta", "dropout")  # of a population, a value a member


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run and what it scored.

    Attributes:
        time: UTC, when it was scored.
        name: of the experiment.
        run: its folder, seen from that of the ledger.
        config: `config_hash` of its settings.
        data_sha256: fingerprint of its bars.
        data: where they came from.
        split: its scheme and settings.
        members: nets in it.
        seed: of the first.
        labels: kept, or what a control did to them.
        val: skill and rank_ic on val; null where there is none.
        test: skill and rank_ic on test; icir, dates, skew and kurtosis of its daily rank IC there.
        commit: of the code, where known.
        settings: that it tried; more than one where members were given settings of their own.
    """

    KIND: ClassVar[str] = "trial"
    time: str
    name: str
    run: str
    config: str
    data_sha256: str
    data: str
    split: Mapping[str, Any]
    members: int
    seed: int
    labels: str
    val: Figures
    test: Figures
    commit: str | None
    settings: int = 1  # lines from before populations were swept have none

    @property
    def icir(self) -> float:
        """Of the test span; NaN where it has none."""
        return _number(self.test.get("icir"))

    def key(self) -> tuple[object, ...]:
        """What makes it another trial: other settings or bars, or the same with other figures.

        A run that was interrupted and resumed, or repeated to the same result, is no other. One
        that was changed in code, or trained longer after its test span had been seen, is.
        """
        figures = (round(_number(self.test.get(name)), 6) for name in ("skill", "rank_ic"))
        return (self.data_sha256, self.config, *(None if math.isnan(x) else x for x in figures))


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the lockbox.

    Attributes:
        time: UTC.
        name: of the experiment.
        run: its folder, seen from that of the ledger.
        config: `config_hash` of its settings.
        data_sha256: fingerprint of its bars.
        lockbox: share of the rows that was locked.
        rows: that were scored.
        scored: figures, with the ends of their intervals.
        commit: of the code that scored them, where known.
    """

    KIND: ClassVar[str] = "look"
    time: str
    name: str
    run: str
    config: str
    data_sha256: str
    lockbox: float
    rows: int
    scored: Figures
    commit: str | None


Entry = Trial | Look


def as_line(entry: Entry) -> str:
    """One line of JSON, its end included."""
    return json.dumps({"kind": entry.KIND, **asdict(entry)}, allow_nan=False) + "\n"


def from_line(line: str) -> Entry:
    """The entry that a line holds.

    Raises:
        ValueError: it is torn, or was never one.
    """
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("no entry")
    kinds = {kind.KIND: kind for kind in (Trial, Look)}
    kind = kinds.get(content.pop("kind", None))
    if kind is None:
        raise ValueError("no entry of a known kind")
    if not all(
        isinstance(content.get(name, {}), dict) for name in ("split", "val", "test", "scored")
    ):
        raise ValueError(f"no whole {kind.KIND}")
    try:
        return kind(**content)
    except TypeError as error:
        raise ValueError(f"no whole {kind.KIND}: {error}") from error


def config_hash(config: DictConfig) -> str:
    """Of all settings that the result depends on, as 16 hexadecimal digits.

    Left out are folders, logging, hardware and speed, and the path of the bars, whose content has
    a fingerprint of its own.
    """
    kept = _seen(OmegaConf.to_container(config, resolve=True), "")
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def settings_tried(config: DictConfig) -> int:
    """How many different settings the members of a run were given.

    Seeds count where they are listed, as those of a sweep are; seed, seed + 1, ... are members of
    one forecast.
    """
    lists = [OmegaConf.select(config, f"population.{name}") for name in _LISTS]
    given = [list(one) for one in lists if one is not None]
    return max(1, len(set(zip(*given, strict=True))))


def _seen(node: Any, key: str) -> Any:
    if not isinstance(node, dict):
        return node
    below = {name: f"{key}.{name}" if key else str(name) for name in node}
    return {name: _seen(node[name], below[name]) for name in node if below[name] not in _UNSEEN}


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)
