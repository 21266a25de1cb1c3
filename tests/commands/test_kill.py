"""kill -9 at any moment, and resume: the result is that of an uninterrupted run."""

import itertools
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.background_runs import SMALL, BackgroundRun, run_to_end
from tests.run_comparison import assert_equal_runs

# the files of a run in the order in which they come; between two of them lies a phase
MARKS = (
    "bundle/config.yaml",
    "checkpoints/last.ckpt",
    "checkpoints/refit/last.ckpt",
    "bundle/model.safetensors",
    "metrics.json",
)
PHASES = ("before the first checkpoint", "choice", "refit", "results")
# a fit draws its last diagnosis after its last checkpoint: a kill in between loses it
LAST_DIAGNOSIS = "stability/"
COMPILED = ("engine=compiled", "trainer.max_epochs=20", "checkpoint.every_n_steps=64")
VARIANTS = {
    "plain": ("engine=plain",),
    "compiled": (*COMPILED, "engine.steps_per_call=32"),
    "population": (*COMPILED, "population.members=3", "population.steps_per_call=16"),
}


def command(variant: str, folder: Path) -> list[str]:
    """Return the command-line words of a run of the variant."""
    cache = folder.parent / "cache"
    return [*SMALL, *VARIANTS[variant], f"hydra.run.dir={folder}", f"cache.folder={cache}"]


def phase_seconds(variant: str, folder: Path) -> list[float]:
    """Return the seconds of each phase of an uninterrupted run in the folder."""
    process = BackgroundRun(command(variant, folder), log=folder.with_suffix(".log"))
    seen = []
    for mark in MARKS:
        process.wait_for(folder / mark)
        seen.append(time.monotonic())
    assert process.exit_code() == 0, process.output()
    return [after - before for before, after in itertools.pairwise(seen)]


def kill_and_resume(variant: str, folder: Path, *, phase: int, seconds: float) -> str:
    """Kill a run this many seconds after the start of a phase, then resume it to its end.

    Returns:
        The phase that it was killed in.
    """
    log = folder.with_suffix(".log")
    process = BackgroundRun(command(variant, folder), log=log)
    process.wait_for(folder / MARKS[phase])
    time.sleep(seconds)
    process.send(signal.SIGKILL)
    assert process.exit_code() in (-signal.SIGKILL, 0), process.output()
    there = [place for place, mark in enumerate(MARKS) if (folder / mark).exists()]
    run_to_end([f"resume={folder}"], log=log)
    return (*PHASES, "the end")[max(there)]


def kill_many(
    variant: str,
    whole: Path,
    phases: Sequence[int],
    *,
    lasting: Sequence[float],
    seed: int,
    share: float = 1.0,
) -> list[str]:
    """Kill one run per phase, each at a random moment."""
    draw, found = random.Random(seed), []
    for number, phase in enumerate(phases):
        folder = whole.parent / f"killed_{seed}_{number}"
        seconds = draw.random() * share * lasting[phase]
        found.append(kill_and_resume(variant, folder, phase=phase, seconds=seconds))
        assert_equal_runs(whole, folder, but=LAST_DIAGNOSIS)
    return found


def test_killed_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    lasting = phase_seconds("plain", tmp_path / "whole")
    kill_many("plain", tmp_path / "whole", [1, 2, 3], lasting=lasting, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_killed_runs_resume_to_the_same_result(variant: str, tmp_path: Path) -> None:
    lasting = phase_seconds(variant, tmp_path / "whole")
    phases = [0, 1, 1, 2, 2, 3, 1, 2, 0, 3] * 2
    found = kill_many(variant, tmp_path / "whole", phases, lasting=lasting, seed=1)
    assert len(found) == 20
    # a machine that was slower when the phases were timed has its kills late: more, and earlier
    for seed, share in enumerate((0.5, 0.25, 0.1), start=2):
        missed = [place for place, phase in enumerate(PHASES) if phase not in found]
        found += kill_many(
            variant, tmp_path / "whole", missed, lasting=lasting, seed=seed, share=share
        )
    assert set(PHASES) <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_run_killed_repeatedly_resumes_to_the_same_result(variant: str, tmp_path: Path) -> None:
    lasting = phase_seconds(variant, tmp_path / "whole")
    draw, folder, log = random.Random(2), tmp_path / "killed", tmp_path / "killed.log"
    words = command(variant, folder)
    for _ in range(8):
        process = BackgroundRun(words, log=log)
        time.sleep(draw.random() * sum(lasting))
        process.send(signal.SIGKILL)
        process.exit_code()
        if (folder / MARKS[0]).exists():
            words = [f"resume={folder}"]
    run_to_end(words, log=log)
    assert_equal_runs(tmp_path / "whole", folder, but=LAST_DIAGNOSIS)
