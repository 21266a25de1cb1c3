"""sweep.json: what a sweep was asked, and how far it is, so that another process can go on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robust_fin.bundle.failure import FAILURE
from robust_fin.bundle.whole_files import write_whole
from robust_fin.errors import ConfigError, Pruned
from robust_fin.results import METRICS
from robust_fin.sweeps.trial import FAILED, FINISHED, PRUNED, STOPPED, Outcome, Trial

RECORD = "sweep.json"
RUNNING = "running"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job that was started.

    Attributes:
        overrides: of its trial.
        environment: of its trial.
        folder: of its run, seen from the sweep's.
        state: running, or one of an outcome.
        reason: one line where it has not finished.
        seconds: wall time so far.
    """

    overrides: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    state: str
    reason: str | None
    seconds: float

    def outcome(self, number: int, sweep: Path) -> Outcome:
        """What became of it, by what lies in its folder where nobody was left to say."""
        folder = sweep / self.folder
        trial = Trial(number, tuple(self.overrides), dict(self.environment))
        state, reason = self.state, self.reason
        if state in (RUNNING, STOPPED, FINISHED):
            state, reason = found_in(folder)
        metrics = read_metrics(folder) if state == FINISHED else {}
        return Outcome(trial, folder, state, reason, metrics, self.seconds)


@dataclass(slots=True)
class SweepRecord:
    """What a sweep was asked, and its jobs.

    Attributes:
        folder: of the sweep, absolute.
        words: of its command line, without where it goes and how it goes on.
        cwd: folder that relative paths in them start at.
        jobs: that were started, by number.
    """

    folder: Path
    words: list[str]
    cwd: str
    jobs: dict[int, JobRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "SweepRecord":
        """Of a sweep that was started.

        Raises:
            ConfigError: the folder holds none.
        """
        path = folder / RECORD
        try:
            content = json.loads(path.read_bytes())
            jobs = {int(number): JobRecord(**one) for number, one in content["jobs"].items()}
            return cls(folder.absolute(), content["words"], content["cwd"], jobs)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(
                f"{folder} is not the folder of a sweep: it has no {RECORD}. Give the one that "
                "holds the numbered folders, such as outputs/top5/2024-12-19_10-00-00_sweep"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: {error}. Start another sweep") from error

    def write(self) -> None:
        """Write at once or not at all."""
        content = {
            "words": self.words,
            "cwd": self.cwd,
            "jobs": {str(number): asdict(one) for number, one in sorted(self.jobs.items())},
        }
        write_whole(self.folder / RECORD, (json.dumps(content, indent=1) + "\n").encode())


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a run that has finished."""
    found: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return found


def found_in(folder: Path) -> tuple[str, str | None]:
    """State and reason of a run that nobody trains, by what lies in its folder."""
    if (folder / METRICS).is_file():
        return FINISHED, None
    if (folder / FAILURE).is_file():
        said = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
        return PRUNED if said["error"] == Pruned.__name__ else FAILED, one_line(said["message"])
    return STOPPED, "stopped before its end"


def one_line(text: str) -> str:
    """A message without its line breaks."""
    return " ".join(text.split())
