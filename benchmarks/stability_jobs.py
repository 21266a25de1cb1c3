"""Read the jobs of a sweep from its numbered folders."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from robust_fin.bundle.config import read_config
from robust_fin.bundle.folder import read_provenance
from robust_fin.runs.job import FAILURE
from robust_fin.runs.results import MEMBERS, METRICS

AS_IT_IS, SPIKED, UNSCALED = "as it is", "spiked", "unscaled"


@dataclass(frozen=True, slots=True)
class Job:
    """One job of a sweep.

    Attributes:
        folder: run folder.
        config: resolved config.
        about: provenance.
        metrics: metrics.json; empty if the job did not finish.
        members: entries of members.json; empty without a population.
        reason: why the job failed; empty if it finished.
        nonfinite: number of non-finite steps; in a population, number of members that had one.
    """

    folder: Path
    config: DictConfig
    about: dict[str, Any]
    metrics: dict[str, Any]
    members: tuple[dict[str, Any], ...]
    reason: str
    nonfinite: int

    @property
    def stress(self) -> str:
        """Name the stress applied to the bars or the features."""
        if self.config.source.spikes is not None:
            return SPIKED
        return AS_IT_IS if self.config.transform.steps else UNSCALED

    @property
    def stopped_at(self) -> str:
        """Return the non-finite optimizer step if the reason names it."""
        found = re.search(r"\bstep (\d+)", self.reason)
        return found[1] if found else "?"


def read_sweep(folder: Path) -> list[Job]:
    """Read all ended jobs of a sweep, in order.

    Args:
        folder: folder with numbered run folders.
    """
    numbered = sorted((int(one.name), one) for one in folder.iterdir() if one.name.isdigit())
    ended = [one for _, one in numbered if any((one / n).is_file() for n in (METRICS, FAILURE))]
    if not ended:
        raise SystemExit(f"{folder} holds no finished job of a sweep")
    return [_read_job(one) for one in ended]


def _read_job(run: Path) -> Job:
    config = read_config(run)
    metrics, failure = (_read_json(run / name) for name in (METRICS, FAILURE))
    nonfinite = metrics.get("nonfinite_steps", 0)
    if failure.get("error") == "NonFiniteError":
        nonfinite = config.population.members or 1
    return Job(
        run,
        config,
        read_provenance(run),
        metrics,
        tuple(_read_json(run / MEMBERS).get("members", ())),
        failure.get("message", ""),
        int(nonfinite),
    )


def described(jobs: Sequence[Job]) -> str:
    """Describe data size, date and commit of a sweep in one line."""
    finished = sorted((one for one in jobs if one.metrics), key=lambda one: one.stress != AS_IT_IS)
    parts = []
    if finished:
        one = finished[0].metrics
        kurtosis = one["train/outcome_excess_kurtosis"]
        parts.append(f"{one['train_rows']:,} training rows, excess kurtosis {kurtosis:,.0f}")
        parts.append(f"{one['test_rows']:,} test rows")
    last = [one.folder / (METRICS if one.metrics else FAILURE) for one in jobs]
    ended = max(path.stat().st_mtime for path in last)
    parts.append(str(datetime.fromtimestamp(ended, UTC).date()))
    commits = sorted({f"`{one.about.get('commit')}`" for one in jobs})
    return "; ".join([*parts, f"commit {', '.join(commits)}"])


def data_name(job: Job) -> str:
    """Return the file name, or describe the synthetic bars."""
    if job.config.source.path is not None:
        return Path(job.config.source.path).name
    synthetic = job.config.source.synthetic
    tails = ""
    if "tail_df" in synthetic:
        tails = f", Student-t shocks with {synthetic.tail_df:g} degrees of freedom"
    return f"synthetic bars, {synthetic.rows:,} rows, planted rank IC {synthetic.signal:g}{tails}"


def percent(share: float, digits: int = 3) -> str:
    """Format a fraction in percent, with its sign."""
    return f"{100 * share:+.{digits}f} %"


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
