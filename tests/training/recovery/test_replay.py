"""Replay reproduces a recorded step, and names the first tensor that is not finite."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import NonFiniteError
from robust_fin.runs.training import fit_settings, load_first_fold
from robust_fin.training import module as modules
from robust_fin.training.lightning_loop import CompiledSteps
from robust_fin.training.recovery.guard import StepNumbers
from robust_fin.training.recovery.record import StepRecord, read_record
from robust_fin.training.recovery.step_replay import (
    NonFiniteDetector,
    Replay,
    replay_at_precision,
    replay_step,
)
from robust_fin.training.settings import FitSettings
from tests.training.faults import Fault, fit_with, settings

DROPOUT = ("model.dropout=0.3", "schedule.warmup=0")


@pytest.fixture(scope="module")
def data() -> BarDataModule:
    return load_first_fold(settings(fault()))


def fault(
    place: str = "feature",
    value: str = "nan",
    *,
    engine: str = "plain",
    batches: int = 1,
    precision: str = "32-true",
) -> Fault:
    return Fault(place, value, "middle", engine, precision, batches, "stop")


def recorded(case: Fault, folder: Path, data: BarDataModule, *words: str) -> StepRecord:
    with pytest.raises(NonFiniteError):
        fit_with(case, folder, data, *words)
    return read_record(folder / f"nonfinite/step_{case.step}.safetensors")


def record_settings(record: StepRecord) -> FitSettings:
    return fit_settings(OmegaConf.create(record.config))


def replay_all(record: StepRecord) -> list[Replay]:
    return replay_step(record, record_settings(record))


def replay_in(record: StepRecord, precision: str) -> Replay:
    return replay_at_precision(record, record_settings(record), precision)


def finite_record(case: Fault, folder: Path, data: BarDataModule, *words: str) -> StepRecord:
    """Return the record of a finite step, by a guard that rejects step 4."""
    read = modules.read_step

    class Rejected(StepNumbers):
        finite = False  # type: ignore[assignment]

    taken: list[StepNumbers] = []

    def read_and_reject(*args: object) -> StepNumbers:
        taken.append(read(*args))  # type: ignore[arg-type]
        return Rejected(*taken[-1]) if len(taken) == 5 else taken[-1]

    def small_count(calls: CompiledSteps) -> bool:
        assert calls.state is not None
        return calls.state.count <= 4

    plain = mock.patch.object(modules, "read_step", read_and_reject)
    compiled = mock.patch.object(CompiledSteps, "_weights_are_finite", small_count)
    with plain, compiled, pytest.raises(NonFiniteError):
        fit_with(None, folder, data, *words, like=case)
    return read_record(folder / "nonfinite/step_4.safetensors")


@pytest.mark.parametrize(
    ("engine", "precision", "batches"),
    [("plain", "32-true", 1), ("plain", "32-true", 2), ("plain", "bf16-mixed", 1),
     ("compiled", "32-true", 1)],
)  # fmt: skip
def test_replay_of_a_finite_step_reproduces_loss_and_norm(
    engine: str, precision: str, batches: int, tmp_path: Path, data: BarDataModule
) -> None:
    case = fault(engine=engine, precision=precision, batches=batches)
    record = finite_record(case, tmp_path, data, *DROPOUT)
    replays = replay_all(record)
    assert [result.precision for result in replays] == ["64-true", precision]
    tolerance = 1e-5 if precision == "32-true" else 0.1
    for result in replays:
        assert result.first is None
        assert result.loss == pytest.approx(record.bad.loss, rel=tolerance)
        assert result.gradient_norm == pytest.approx(record.bad.gradient_norm, rel=tolerance)
    other = replace(record, bad=replace(record.bad, rng_state=None, dropout_key=None))
    masks = replay_in(other, "64-true").gradient_norm
    assert masks != pytest.approx(record.bad.gradient_norm, rel=0.005)


@pytest.mark.parametrize(
    ("engine", "batches"),
    [("plain", 1), ("plain", 2), pytest.param("compiled", 1, marks=pytest.mark.slow)],
)
def test_replay_names_the_module_that_reads_a_bad_feature(
    engine: str, batches: int, tmp_path: Path, data: BarDataModule
) -> None:
    record = recorded(fault(engine=engine, batches=batches), tmp_path, data)
    (result,) = replay_all(record)
    assert result.first is not None
    assert (result.first.place, result.first.kind) == ("blocks.0.0 (Linear)", "output")
    assert result.first.rows == result.bad_rows == (3,)
    assert result.bad_weights == ()


def test_replay_counts_rows_from_the_first_accumulated_batch(
    tmp_path: Path, data: BarDataModule
) -> None:
    case = replace(fault("target", "inf", batches=2), moment="last")  # batch 11: the second of two
    (result,) = replay_all(recorded(case, tmp_path, data))
    assert result.first is not None
    assert result.first.rows in ((256 + 3,), ())
    assert result.bad_rows == (256 + 3,)


def test_replay_names_the_loss_for_an_infinite_target(tmp_path: Path, data: BarDataModule) -> None:
    (result,) = replay_all(recorded(fault("target", "inf"), tmp_path, data))
    assert result.first is not None
    assert (result.first.place, result.first.kind) == ("loss", "output")
    assert result.bad_rows == (3,)


@pytest.mark.parametrize("engine", [pytest.param("plain", marks=pytest.mark.slow), "compiled"])
def test_replay_names_the_module_of_a_bad_weight(
    engine: str, tmp_path: Path, data: BarDataModule
) -> None:
    (result,) = replay_all(recorded(fault("weight", engine=engine), tmp_path, data))
    assert result.bad_weights == ("head.weight",)
    assert result.first is not None
    assert result.first.place == "head (Linear)"
    assert len(result.first.rows) == 256


def test_replay_repeats_in_the_precision_of_the_run(tmp_path: Path, data: BarDataModule) -> None:
    first, second = replay_all(recorded(fault("feature", "1e30"), tmp_path, data))
    assert first.first is None
    assert first.bad_rows == ()
    assert second.precision == "32-true"
    assert second.first is not None
    assert second.first.place == "blocks.0.1 (LayerNorm)"  # its variance
    assert second.first.rows == (3,)


def test_replay_names_the_largest_rows_if_only_the_norm_overflows(
    tmp_path: Path, data: BarDataModule
) -> None:
    record = finite_record(fault(), tmp_path, data, "schedule.warmup=0")
    x = record.bad.x.clone()
    x[17] = 3e4
    steep = replace(record_settings(record), loss=partial(steep_loss, slope=1e22))
    result = replay_at_precision(replace(record, bad=replace(record.bad, x=x)), steep, "32-true")
    assert result.first is not None
    assert (result.first.place, result.first.kind) == ("head (Linear)", "gradient norm")
    assert result.first.rows[0] == 17
    assert np.isfinite(result.loss)


def steep_loss(score: torch.Tensor, target: torch.Tensor, *, slope: float) -> torch.Tensor:
    """Finite, with finite gradients whose squares overflow in float32."""
    return slope * (score - target).mean()


def test_replay_names_the_weight_that_the_step_would_break(
    tmp_path: Path, data: BarDataModule
) -> None:
    record = finite_record(fault(), tmp_path, data, "schedule.warmup=0")
    result = replay_in(replace(record, bad=replace(record.bad, lr=1e30)), "64-true")
    assert result.first is not None
    assert result.first.kind == "weight"
    assert result.first.place.startswith("the optimizer's step of ")


class Root(nn.Module):
    """Square root: finite at 0, with an infinite slope."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().sqrt()


def test_detector_names_the_first_bad_gradient_of_the_backward_pass() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), Root(), nn.Linear(2, 1)).double()
    detector = NonFiniteDetector(net)
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    detector.check_output("loss", net(x).sum()).backward()
    assert detector.first is not None
    assert (detector.first.place, detector.first.kind) == (
        "0 (Linear)",
        "gradient of its output",
    )
    assert detector.first.rows == (1,)


def test_detector_keeps_the_first_bad_tensor() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    detector = NonFiniteDetector(net)
    net(torch.tensor([[torch.nan, 1.0]]))
    net(torch.tensor([[torch.inf, 1.0]]))
    assert detector.first is not None
    assert (detector.first.place, detector.first.rows) == ("0 (Linear)", (0,))
