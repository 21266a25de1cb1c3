"""A population whose members are split over two processes equals the population of one process."""

from pathlib import Path

import pytest

from tests.small_runs import read_metrics, run_training

WORDS = ("trainer.max_epochs=1", "split.refit=false")
LARGE = ("engine=compiled", "population.members=5", "source.synthetic.rows=8000")
SMALL = (
    *("engine=plain", "population.members=3", "source.synthetic.rows=3000", "batch_size=64"),
    "features.names=[close_change_pct]",
    "population.block=1",  # a block that is measured would differ between the two runs
)
TIMES = ("steps_per_second", "member_steps_per_second", "fit_seconds")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("trainer.devices=2", SMALL),
        pytest.param("trainer.devices=2", LARGE, marks=pytest.mark.slow),
        pytest.param("trainer=ddp", LARGE, marks=pytest.mark.slow),
    ],
)
def test_members_on_two_processes_equal_those_of_one(
    choice: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    alone = run_training(tmp_path / "alone", *WORDS, *words)
    run_training(tmp_path / "split", *WORDS, *words, choice)
    split = read_metrics(tmp_path / "split")
    for name in TIMES:
        alone.pop(name), split.pop(name)
    assert split == alone
    assert split["members"] == int(words[1].partition("=")[2])
    for file in ("bundle/model.safetensors", "members.json", "member_scores.safetensors"):
        assert (tmp_path / "split" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
