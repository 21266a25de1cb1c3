"""A population whose members are split over two processes is the population of one."""

from pathlib import Path

import pytest

from tests.small_runs import read_metrics, run_training

WORDS = (
    "engine=compiled",
    "population.members=5",
    "trainer.max_epochs=1",
    "split.refit=false",
    "source.synthetic.rows=8000",
)
TIMES = ("steps_per_second", "member_steps_per_second", "fit_seconds")


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["trainer.devices=2", "trainer=ddp"])
def test_members_on_two_processes_are_those_of_one(choice: str, tmp_path: Path) -> None:
    alone = run_training(tmp_path / "alone", *WORDS)
    run_training(tmp_path / "split", *WORDS, choice)
    split = read_metrics(tmp_path / "split")
    for name in TIMES:
        alone.pop(name), split.pop(name)
    assert split == alone
    assert split["members"] == 5
    for file in ("bundle/model.safetensors", "members.json", "member_scores.safetensors"):
        assert (tmp_path / "split" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
