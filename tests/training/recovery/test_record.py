"""The record of a step: its rows and state, and no pickle."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from robust_fin.data.batches import EpochOrder
from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import BundleError, NonFiniteError
from robust_fin.runs.training import load_first_fold
from robust_fin.training.recovery import record as records
from robust_fin.training.recovery.checkpoint_files import read_checkpoint
from robust_fin.training.recovery.record import StepRecord, last_batch_rows, read_record
from tests.training.faults import MOMENTS, Fault, fit_with, settings
from tests.training.test_lightning_loop import curve

SETUPS = [pytest.param("plain", 1, marks=pytest.mark.slow), ("plain", 2), ("compiled", 1)]

# max_steps ends before the first validation
pytestmark = pytest.mark.filterwarnings("ignore:.*could not find the monitored key")


@pytest.fixture(scope="module")
def data() -> BarDataModule:
    return load_first_fold(settings(feature_fault("plain", 1)))


def feature_fault(engine: str, batches: int) -> Fault:
    return Fault("feature", "nan", "middle", engine, "32-true", batches, "stop")


def recorded(fault: Fault, folder: Path, data: BarDataModule) -> StepRecord:
    with pytest.raises(NonFiniteError) as caught:
        fit_with(fault, folder, data, "trainer.log_every_n_steps=1")
    path = str(caught.value).partition("python -m robust_fin.replay record=")[2].split()[0]
    assert path.startswith(str(folder / f"nonfinite/step_{fault.step}"))
    return read_record(Path(path))


@pytest.mark.parametrize(("engine", "batches"), SETUPS)
def test_record_holds_the_rows_and_the_state_before_the_step(
    engine: str, batches: int, tmp_path: Path, data: BarDataModule
) -> None:
    fault = feature_fault(engine, batches)
    record = recorded(fault, tmp_path, data)
    bad, first = record.bad, fault.step * batches
    rows = data.order().begin()[1][first : first + batches].reshape(-1)
    assert bad.rows is not None
    assert torch.equal(bad.rows, rows)
    assert torch.equal(bad.target, data.train_tensors()[1][rows])
    bad_cells = (~bad.x.isfinite()).nonzero().tolist()
    assert bad_cells == [[256 * (MOMENTS["middle"] - first) + 3, 1]]
    good = bad.x.isfinite()
    assert torch.equal(bad.x[good], data.x("train")[rows][good])

    examples, numbers = data.market.examples, data.fitted.span("train")[rows.numpy()]
    assert record.time is not None
    assert np.array_equal(record.time, examples.time[numbers].astype("datetime64[ns]"))
    assert record.contract == [str(code) for code in examples.contract[numbers]]
    assert record.features == list(data.features.names)

    clean = tmp_path / "clean"
    fit_with(None, clean, data, f"trainer.max_steps={fault.step}", like=fault)
    state = read_checkpoint(clean / "checkpoints/last.ckpt")
    for name, values in bad.net.items():
        assert torch.equal(values, state["state_dict"][f"net.{name}"]), name
    names = [name.removeprefix("net.") for name in state["state_dict"]]
    moments = state["optimizer_states"][0]["state"].values()
    for name, state_of_weight in zip(names, moments, strict=True):
        for key, values in state_of_weight.items():
            assert torch.equal(values, bad.optimizer[f"{name}/{key}"]), (name, key)
    drawn = list(curve(tmp_path, "train/gradient_norm").values())[: fault.step]
    assert record.norms.tolist() == pytest.approx(drawn, rel=1e-6)
    rate = state["optimizer_states"][0]["param_groups"][0]["lr"]
    assert bad.lr == pytest.approx(rate)
    assert bad.batches == batches
    assert (bad.rng_state is None) == (engine == "compiled") == (bad.dropout_key is not None)
    expected = settings(fault, "trainer.log_every_n_steps=1")
    assert record.config == OmegaConf.to_yaml(expected, resolve=True)


def test_last_batch_rows_are_those_of_the_loader() -> None:
    for rank in range(2):
        order = EpochOrder(100, batch_size=8, seed=3, rank=rank, world_size=2)
        order.set_epoch(4)
        _, steps = order.begin()
        order.next_step = 5
        assert torch.equal(last_batch_rows(order, batches=1), steps[4])
        assert torch.equal(last_batch_rows(order, batches=2), steps[3:5].reshape(-1))


def test_repeated_failure_writes_a_second_record(tmp_path: Path, data: BarDataModule) -> None:
    fault = feature_fault("plain", 1)
    for _ in range(2):
        recorded(fault, tmp_path, data)
    names = sorted(path.name for path in (tmp_path / "nonfinite").iterdir())
    assert names == ["step_6.safetensors", "step_6_2.safetensors"]
    assert_is_a_record(tmp_path / "nonfinite/step_6.safetensors")


def assert_is_a_record(path: Path) -> None:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"]["kind"] == "robust_fin record of a step, 1"
    assert {"x", "target", "rows", "time", "norms", "rng_state", "net/head.bias"} <= set(header)
    assert load_file(path)["x"].shape == (256, 5)


def test_disk_error_does_not_hide_the_nonfinite_step(
    tmp_path: Path,
    data: BarDataModule,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def raise_disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "write_atomic", raise_disk_full)
    with caplog.at_level(logging.WARNING), pytest.raises(NonFiniteError, match=r"at step 6, be"):
        fit_with(feature_fault("plain", 1), tmp_path, data)
    assert "cannot write the record of step 6" in caplog.text


def test_file_that_is_no_record_raises(tmp_path: Path) -> None:
    absent, text, other = (tmp_path / name for name in ("absent", "text", "other.safetensors"))
    text.write_text("no record")
    save_file({"x": torch.zeros(1)}, other)
    pickled = tmp_path / "pickle.safetensors"
    torch.save({"x": torch.zeros(1)}, pickled)
    for path in (absent, text, pickled, tmp_path):
        with pytest.raises(BundleError, match="cannot be read as a record"):
            read_record(path)
    with pytest.raises(BundleError, match="is not the record of a step"):
        read_record(other)
