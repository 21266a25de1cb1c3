"""sweep.json, and the outcome of a job as its folder shows it."""

import json
from pathlib import Path

import pytest

from robust_fin.errors import ConfigError
from robust_fin.sweeps.job import JobRecord, SweepRecord, read_state


def job(state: str) -> JobRecord:
    return JobRecord(["seed=1"], {"A": "1"}, "0", state, None, 2.5)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = SweepRecord(tmp_path, ["seed=1,2", "name='é'"], "/from/here", {3: job("running")})
    record.write()
    assert SweepRecord.read(tmp_path) == record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not the folder of a sweep: it has no sweep.json. Use the folder that contains"),
        ("{", "sweep.json is damaged"),
        ("[]", "sweep.json is damaged"),
        ('{"words": [], "cwd": "/", "jobs": {"0": {"states": 1}}}', "sweep.json is damaged"),
    ],
)
def test_a_missing_or_damaged_record_raises(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        SweepRecord.read(tmp_path)


def test_the_outcome_of_a_job_is_read_from_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "0"
    run.mkdir()
    outcome = job("running").outcome(0, tmp_path)
    assert (outcome.state, outcome.reason) == ("stopped", "stopped before its end")
    assert outcome.seconds == 2.5
    (run / "failure.json").write_text(json.dumps({"error": "Pruned", "message": "too\nlow"}))
    assert read_state(run) == ("pruned", "too low")
    (run / "failure.json").write_text(json.dumps({"error": "NonFiniteError", "message": "nan"}))
    assert job("running").outcome(0, tmp_path).state == "failed"
    (run / "metrics.json").write_text('{"val/skill": 0.5}')
    outcome = job("running").outcome(0, tmp_path)
    assert (outcome.state, outcome.reason) == ("finished", None)
    assert outcome.metrics == {"val/skill": 0.5}
    assert outcome.trial.overrides == ("seed=1",)
    assert job("failed").outcome(0, tmp_path).state == "failed"  # as recorded at the time
