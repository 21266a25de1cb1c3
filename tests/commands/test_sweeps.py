"""The sweeps of docs/stability.md: their grids, failed jobs, and the tables made from them."""

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_fin import train
from robust_fin.cli.composition import conf_folder
from tests.conftest import ROOT
from tests.small_runs import QUICK, read_metrics

FORKED = "executor._target_=tests.sweeps.forked.ForkedExecutor"  # starts without delay
SMALL = (
    *(*QUICK, FORKED, "source.synthetic.rows=6000"),
    *("features.names=[close_change_pct]", "batch_size=64"),
)


def swept(experiment: str) -> dict[str, list[str]]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        words = [f"+experiment={experiment}"]
        composed = compose("train", overrides=words, return_hydra_config=True)
    assert composed.hydra.mode.name == "MULTIRUN"
    params = composed.hydra.sweeper.params
    return {key: re.findall(r"\[[^]]*\]|[^,]+", value) for key, value in params.items()}


def test_the_ladder_has_its_documented_grid() -> None:
    assert swept("ladder") == {
        "model.hidden": ["[16,8]", "[64,32]", "[128,64,32]", "[512,256,128]", "[1024,768,256]"],
        "optimizer.lr": ["0.0001", "0.001", "0.01"],
        "trainer.precision": ["32-true", "bf16-mixed"],
        "stress": ["none", "spiked", "unscaled"],
    }


def test_the_ablation_has_its_documented_grid() -> None:
    assert swept("ablation") == {
        "target_scale": ["rank", "return"],
        "loss": ["huber", "squared"],
        "schedule.warmup": ["500", "0"],
        "model": ["residual_mlp", "plain_mlp"],
    }


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the document, and make the script that fills it importable."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    copy = tmp_path / "stability.md"
    copy.write_text((ROOT / "docs" / "stability.md").read_text())
    return copy


def filled(document: Path, folder: Path) -> str:
    import stability_tables

    stability_tables.main([folder], document=document)
    return document.read_text()


def test_a_non_finite_job_of_the_ladder_is_a_failed_row(
    tmp_path: Path, document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("model.hidden=[16,8]", "trainer.precision=bf16-mixed", "stress=none")
    rates = ("optimizer.lr=1e30,0.001", "trainer.max_steps=20", "trainer.log_every_n_steps=1")
    words = ("+experiment=ladder", f"hydra.sweep.dir={tmp_path / 'sweep'}", *SMALL, *grid, *rates)
    assert train.main(words) == 1  # the sweep continued, and its end reports the failed job
    assert "error: job 0 failed: the loss is nan" in capsys.readouterr().err
    failure = json.loads((tmp_path / "sweep" / "0" / "failure.json").read_text())
    assert failure["error"] == "NonFiniteError"
    assert not (tmp_path / "sweep" / "0" / "metrics.json").exists()
    metrics = read_metrics(tmp_path / "sweep" / "1")
    assert (metrics["nonfinite_steps"], metrics["steps"]) == (0, 20)
    events = EventAccumulator(str(tmp_path / "sweep" / "1" / "tensorboard")).Reload()
    norms = [point.value for point in events.Scalars("train/gradient_norm")]
    assert len(norms) == 20
    assert metrics["train/gradient_norm_max"] == pytest.approx(max(norms), rel=1e-6)
    step = re.search(r"at step (\d+)", failure["message"])[1]
    text = filled(document, tmp_path / "sweep")
    skill = f"{100 * metrics['test/skill']:+.3f} %"
    assert f"| [16, 8] | {metrics['parameters']} | 0.001 | 0; {skill} |" in text
    assert f"| [16, 8] | ? | 1e+30 | 1; stopped at step {step} |" in text
    assert "1 of 2 runs finished. Steps that were not finite, in all runs together: 1." in text
    assert "- job 0, [16, 8] at lr 1e+30 in bf16-mixed, unchanged: the loss is nan" in text
    assert "synthetic bars, 6,000 rows" in text


def test_the_ablation_becomes_a_table_and_sentences(tmp_path: Path, document: Path) -> None:
    grid = ("schedule.warmup=0", "model=plain_mlp", "target_scale=rank", "engine=plain")
    small = ("trainer.max_steps=20", "population.members=2", "model.hidden=[8]")
    words = ("+experiment=ablation", f"hydra.sweep.dir={tmp_path / 'sweep'}", *SMALL, *grid, *small)
    assert train.main(words) == 0
    huber, squared = (read_metrics(tmp_path / "sweep" / str(job)) for job in (0, 1))
    assert huber["members_frozen"] == squared["members_frozen"] == 0
    text = filled(document, tmp_path / "sweep")
    for name, one in (("Huber", huber), ("squared", squared)):
        skill = f"{100 * one['members/test/skill_mean']:+.3f} %"
        norm = f"{one['train/gradient_norm_max']:.3g}"
        assert f"| rank | {name} | none | neither | 0 of 2 | {norm} | {skill} [" in text
    apart = huber["members/test/skill_mean"] - squared["members/test/skill_mean"]
    ratio = huber["train/gradient_norm_max"] / squared["train/gradient_norm_max"]
    frozen = "0 / 0 of 2"
    effect = f"| Huber loss | squared error | {frozen} | {ratio:.2f} | {100 * apart:+.3f} % ["
    assert effect in text
    assert "| warmup | none |" not in text  # warmup was not varied
    assert "None of the 4 members met a step that was not finite" in text
    assert re.search(r"On ranks, .*(squared error|Huber loss).*: the skill with Huber loss", text)
    assert text.count("<!-- end of") == 2
