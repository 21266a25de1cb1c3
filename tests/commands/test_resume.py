"""resume=RUN_FOLDER continues a run exactly, and rejects a run that was changed."""

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robust_fin import predict, train
from robust_fin.bundle.folder import read_config
from robust_fin.runs import training
from robust_fin.runs.job import Job, start_job
from robust_fin.runs.schema import apply_schema
from robust_fin.training.recovery import checkpoint_files
from robust_fin.training.recovery.checkpoint_files import checkpoint_bytes, read_checkpoint
from tests.conftest import MakeBars
from tests.run_comparison import assert_equal_runs
from tests.small_runs import reseal, run_training

Caplog, Capture = pytest.LogCaptureFixture, pytest.CaptureFixture[str]
SMALL = (
    *("features=study", "source.synthetic.rows=4000", "batch_size=64"),
    "model.dropout=0.1",
    "trainer.log_every_n_steps=1",
)
CALLS = ("engine=compiled", "engine.steps_per_call=4")
VARIANTS = {
    "plain": ("checkpoint.every_n_steps=7",),
    "compiled": (*CALLS, "checkpoint.every_n_steps=7"),
    "val within an epoch": ("trainer.val_check_interval=10", "checkpoint.every_n_steps=5"),
    "val within an epoch, compiled": (*CALLS, "trainer.val_check_interval=10"),
    "accumulation": ("trainer.accumulate_grad_batches=2", "checkpoint.every_n_steps=3"),
    "max_steps": ("trainer.max_steps=47", "checkpoint.every_n_steps=5"),
    "max_steps, compiled": (*CALLS, "trainer.max_steps=47", "checkpoint.every_n_steps=5"),
    "limited": ("trainer.limit_train_batches=20", "checkpoint.every_n_steps=7"),
    "bf16": ("trainer.precision=bf16-mixed", "checkpoint.every_n_steps=11"),
    "stopped early": (
        *("callbacks=early_stopping", "callbacks.early_stopping.patience=1"),
        *("trainer.max_epochs=6", "optimizer.lr=0.1", "checkpoint.every_n_steps=9"),
    ),
    "no val": ("split.val_fraction=0", "split.refit=false", "checkpoint.every_n_steps=7"),
    "val every second epoch": ("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4"),
    "diagnoses": ("stability.diagnose_every_n_steps=9", "checkpoint.every_n_steps=7"),
    "population": (
        *(*CALLS, "population.members=3", "population.steps_per_call=4"),
        "checkpoint.every_n_steps=7",
    ),
}


class Written:
    """The checkpoints of a run after each write, as kill -9 would leave them."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.names: list[str] = []

    def __call__(self, path: Path, content: bytes, *, previous: Path | None = None) -> None:
        self.write(path, content, previous=previous)
        shutil.copytree(self.run / "checkpoints", self.folder / str(len(self.names)))
        self.names.append(str(path.relative_to(self.run / "checkpoints")))

    def train(self, *words: str) -> None:
        """Run from start to end."""
        with pytest.MonkeyPatch.context() as patch:
            self.write = checkpoint_files.write_atomic
            patch.setattr(checkpoint_files, "write_atomic", self)
            run_training(self.run, *SMALL, *words)

    def killed(self, number: int, folder: Path) -> Path:
        """Return a copy of the run as if it had been killed after that write."""
        shutil.copytree(self.run, folder)
        (folder / "metrics.json").unlink()
        shutil.rmtree(folder / "checkpoints")
        shutil.copytree(self.folder / str(number), folder / "checkpoints")
        return folder

    def assert_all_end_alike(self, numbers: Sequence[int], folder: Path) -> None:
        """Resume from those writes; the curves have the points logged after them."""
        for number in numbers:
            killed = self.killed(number, folder / "killed")
            assert train.main([f"resume={killed}"]) == 0
            assert_equal_runs(self.run, killed)
            shutil.rmtree(killed)


def test_resume_in_the_middle_of_an_epoch_continues_the_same_curves(tmp_path: Path) -> None:
    written = Written(tmp_path / "whole", tmp_path / "written")
    written.train(*VARIANTS["plain"])
    choice = [place for place, name in enumerate(written.names) if name == "last.ckpt"]
    refit = [place for place, name in enumerate(written.names) if name == "refit/last.ckpt"]
    written.assert_all_end_alike([choice[2], refit[1]], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_from_every_checkpoint_gives_the_same_result(variant: str, tmp_path: Path) -> None:
    written = Written(tmp_path / "whole", tmp_path / "written")
    written.train(*VARIANTS[variant])
    written.assert_all_end_alike(range(len(written.names)), tmp_path)


# `make_bars` knows no halts, so its bars contradict the calendar
AROUND_THE_CLOCK = ("source.timezone=UTC", "source.bar=15min", "source.accept=[calendar]")

# one finished run, which the tests below copy, damage and move


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_bars: MakeBars) -> Path:
    """A finished run on bars in a CSV file beside it."""
    folder = tmp_path_factory.mktemp("resume")
    make_bars(rows=3000, every="15min").to_csv(folder / "es.csv", index=False)
    words = (f"source.path={folder / 'es.csv'}", *AROUND_THE_CLOCK, "batch_size=64")
    run_training(folder / "run", *words, "checkpoint.every_n_steps=5")
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run without metrics.json."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/metrics.json").unlink()
    return tmp_path / "run"


def refused(words: list[str], capfd: Capture, *, verb: Callable[[list[str]], int]) -> str:
    """Return the error message of a command that must fail."""
    capfd.readouterr()
    assert verb(words) == 1
    message = capfd.readouterr().err
    assert "Traceback" not in message
    assert message.count("error: ") == 1
    return message


def test_moved_run_folder_resumes(finished: Path, run: Path) -> None:
    shutil.copy(run / "checkpoints/previous.ckpt", run / "checkpoints/last.ckpt")
    run = run.rename(run.parent / "moved")
    assert train.main([f"resume={run}"]) == 0
    assert_equal_runs(finished, run)
    state = read_checkpoint(run / "checkpoints/last.ckpt")["callbacks"]
    (best,) = [value for key, value in state.items() if key.startswith("BestCheckpoint")]
    assert best["best_model_path"] == str(run / "checkpoints/best.ckpt")


def test_resume_without_a_checkpoint_starts_anew_with_a_warning(
    finished: Path, run: Path, caplog: Caplog
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "bundle/provenance.json").unlink()
    assert train.main([f"resume={run}"]) == 0
    assert f"{run} has no checkpoint yet; the run starts over" in caplog.text
    assert_equal_runs(finished, run)


@pytest.mark.parametrize(("stage", "damage"), [("", "cut"), ("refit", "changed")])
def test_damaged_checkpoint_is_replaced_by_the_previous_one(
    finished: Path, run: Path, caplog: Caplog, stage: str, damage: str
) -> None:
    last = run / "checkpoints" / stage / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content if damage == "changed" else content[: len(content) // 2])
    step = read_checkpoint(last.with_name("previous.ckpt"))["global_step"]
    assert train.main([f"resume={run}"]) == 0
    told = f"{last} is damaged: its checksum does not match; resuming from previous.ckpt"
    assert f"{told} of step {step}\n" in caplog.text
    assert_equal_runs(finished, run)


def test_two_damaged_checkpoints_are_an_error(run: Path, capfd: Capture) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (run / "checkpoints" / name).write_bytes(b"PK no more")
    message = refused([f"resume={run}"], capfd, verb=train.main)
    assert "last.ckpt is damaged" in message
    assert "previous.ckpt is damaged" in message
    assert f"Remove {run / 'checkpoints'} and resume again" in message


def test_resume_with_another_config_names_the_difference(run: Path, capfd: Capture) -> None:
    path = run / "bundle/config.yaml"
    text = path.read_text()
    edited = text.replace("lr: 0.003", "lr: 0.001").replace("seed: 0\nb", "seed: 5\nb")
    path.write_text(edited)
    message = refused([f"resume={run}"], capfd, verb=train.main)
    assert f"{path} changed since the run was started: " in message
    assert "seed is 5, was 0; optimizer.lr is 0.001, was 0.003. Restore it" in message
    assert path.read_text() == edited


def test_resume_with_other_bars_names_the_difference(
    finished: Path, run: Path, capfd: Capture
) -> None:
    path = finished.parent / "es.csv"
    text, kept = path.read_text(), json.loads((run / "bundle/provenance.json").read_text())
    before = {one: one.read_bytes() for one in run.rglob("*") if one.is_file()}
    try:
        path.write_text(text[: text.rstrip().rindex("\n") + 1])  # without the last bar
        message = refused([f"resume={run}"], capfd, verb=train.main)
    finally:
        path.write_text(text)
    assert "the bars changed since the run was started: data_sha256 is " in message
    assert f", was {kept['data_sha256']}; rows_in is 2999, was 3000; last_bar is " in message
    assert {one: one.read_bytes() for one in before} == before


def test_resume_with_other_versions_warns(run: Path, caplog: Caplog) -> None:
    path = run / "bundle/provenance.json"
    kept = json.loads(path.read_text())
    kept["versions"] |= {"torch": "2.11.0", "numpy": "1.0"}
    path.write_text(json.dumps(kept))
    assert train.main([f"resume={run}"]) == 0
    assert "the run was started with other versions" in caplog.text
    assert f": torch {torch.__version__} (was 2.11.0), numpy {np.__version__} (was" in caplog.text


def test_resume_with_fewer_epochs_than_done_is_an_error(run: Path, capfd: Capture) -> None:
    message = refused([f"resume={run}", "trainer.max_epochs=1"], capfd, verb=train.main)
    assert "trainer.max_epochs=1 is below the 2 epochs that the run has completed" in message


@pytest.mark.slow
def test_refit_of_another_choice_starts_anew(finished: Path, run: Path, tmp_path: Path) -> None:
    """A run that got more epochs is killed before its refit starts anew."""
    assert train.main([f"resume={run}", "trainer.max_epochs=3"]) == 0
    more = shutil.copytree(run, tmp_path / "more")
    shutil.rmtree(run / "checkpoints/refit")
    shutil.copytree(finished / "checkpoints/refit", run / "checkpoints/refit")
    assert train.main([f"resume={run}"]) == 0
    assert_equal_runs(more, run)


def test_retried_job_uses_none_of_the_checkpoints_in_its_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit_folds", killed)
    job = Job(apply_schema(read_config(run)), run, resume=False)
    with pytest.raises(KeyboardInterrupt):
        start_job(job, training.run_training, module=training.TRAIN_MODULE)
    assert not (run / "metrics.json").exists()
    assert list((run / "checkpoints").rglob("*.ckpt")) == []


# files that would run code


class Payload:
    """Creates a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def poison(path: Path, kind: str, marker: Path) -> None:
    """Replace a file by a pickle, or by a checkpoint or YAML with code."""
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Payload(marker)}))
    elif kind == "archive":
        torch.save({**read_checkpoint(path), "more": Payload(marker)}, path)
    elif kind == "sealed":
        path.write_bytes(checkpoint_bytes({**read_checkpoint(path), "more": Payload(marker)}))
    else:
        tag = f"!!python/object/apply:builtins.open ['{marker}', 'w']"
        path.write_text(path.read_text() + f"more: {tag}\n")


@pytest.mark.parametrize("kind", ["pickle", "archive", "sealed"])
@pytest.mark.parametrize("name", ["last.ckpt", "previous.ckpt", "best.ckpt", "refit/last.ckpt"])
def test_checkpoint_with_code_is_not_loaded(
    run: Path, tmp_path: Path, capfd: Capture, name: str, kind: str
) -> None:
    path = run / "checkpoints" / name
    poison(path, kind, tmp_path / "created")
    if name == "previous.ckpt":
        (run / "checkpoints/last.ckpt").unlink()
    message = refused([f"resume={run}"], capfd, verb=train.main)
    assert f"{path} contains code" in message
    assert not (tmp_path / "created").exists()
    assert not (run / "metrics.json").exists()


@pytest.mark.parametrize(
    ("name", "kind", "verb"),
    [
        ("config.yaml", "pickle", "resume"),
        ("config.yaml", "tag", "resume"),
        ("provenance.json", "pickle", "resume"),
        ("config.yaml", "pickle", "predict"),
        ("config.yaml", "tag", "predict"),
        ("model.safetensors", "pickle", "predict"),
        ("transforms.safetensors", "pickle", "predict"),
    ],
)
def test_bundle_with_code_is_not_loaded(
    run: Path, tmp_path: Path, capfd: Capture, name: str, kind: str, verb: str
) -> None:
    poison(run / "bundle" / name, kind, tmp_path / "created")
    out = tmp_path / "out.parquet"
    words = [f"resume={run}"] if verb == "resume" else [f"run={run}", f"out={out}"]
    message = refused(words, capfd, verb=train.main if verb == "resume" else predict.main)
    assert f"{run / 'bundle'}" in message
    assert not (tmp_path / "created").exists()
    assert not out.exists()


def test_bundle_builds_registered_constructors_only(
    run: Path, tmp_path: Path, capfd: Capture
) -> None:
    path, out = run / "bundle/config.yaml", tmp_path / "out.parquet"
    target = "_target_: robust_fin.models.mlp.ResidualMLP\n"
    assert target in path.read_text()
    path.write_text(path.read_text().replace(target, "_target_: os.system\n"))
    reseal(run)
    message = refused([f"run={run}", f"out={out}"], capfd, verb=predict.main)
    assert "os.system" in message
