import json
from pathlib import Path

import pytest

from robust_fin.errors import ConfigError
from robust_fin.sweeps.job import JobRecord, SweepRecord, found_in


def job(state: str) -> JobRecord:
    return JobRecord(["seed=1"], {"A": "1"}, "0", state, None, 2.5)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = SweepRecord(tmp_path, ["seed=1,2", "name='é'"], "/from/here", {3: job("running")})
    record.write()
    assert SweepRecord.read(tmp_path) == record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not the folder of a sweep: it has no sweep.json. Give the one that holds"),
        ("{", "sweep.json is damaged"),
        ("[]", "sweep.json is damaged"),
        ('{"words": [], "cwd": "/", "jobs": {"0": {"states": 1}}}', "sweep.json is damaged"),
    ],
)
def test_a_folder_without_a_whole_record_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        SweepRecord.read(tmp_path)


def test_what_became_of_a_job_is_read_from_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "0"
    run.mkdir()
    one = job("running").outcome(0, tmp_path)
    assert (one.state, one.reason, one.seconds) == ("stopped", "stopped before its end", 2.5)
    (run / "failure.json").write_text(json.dumps({"error": "Pruned", "message": "too\nlow"}))
    assert found_in(run) == ("pruned", "too low")
    (run / "failure.json").write_text(json.dumps({"error": "NonFiniteError", "message": "nan"}))
    assert job("running").outcome(0, tmp_path).state == "failed"
    (run / "metrics.json").write_text('{"val/skill": 0.5}')
    one = job("running").outcome(0, tmp_path)
    assert (one.state, one.reason, one.metrics) == ("finished", None, {"val/skill": 0.5})
    assert one.trial.overrides == ("seed=1",)
    assert job("failed").outcome(0, tmp_path).state == "failed"  # as it was told then
