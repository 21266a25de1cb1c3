"""A recorded step is the same step again, and what is not finite in it is named where it starts."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

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
from robust_fin.training.recovery.record import (
    NonFiniteDetector,
    Replay,
    StepRecord,
    read_record,
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


def settings_of(record: StepRecord) -> FitSettings:
    return fit_settings(OmegaConf.create(record.config))


def run_again(record: StepRecord) -> list[Replay]:
    return replay_step(record, settings_of(record))


def run_again_in(record: StepRecord, precision: str) -> Replay:
    return replay_at_precision(record, settings_of(record), precision)


def finite_record(case: Fault, folder: Path, data: BarDataModule, *words: str) -> StepRecord:
    """The record of a sound step, by a guard that takes step 4 for a bad one."""
    read = modules.read_step

    class Alarmed(StepNumbers):
        finite = False  # type: ignore[assignment]

    taken: list[StepNumbers] = []

    def alarmed(*given: object) -> StepNumbers:
        taken.append(read(*given))  # type: ignore[arg-type]
        return Alarmed(*taken[-1]) if len(taken) == 5 else taken[-1]

    def small_count(calls: CompiledSteps) -> bool:
        assert calls.state is not None
        return calls.state.count <= 4

    plain = mock.patch.object(modules, "read_step", alarmed)
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
    found = run_again(record)
    assert [one.precision for one in found] == ["64-true", precision]
    tolerance = 1e-5 if precision == "32-true" else 0.1
    for one in found:
        assert one.first is None
        assert one.loss == pytest.approx(record.bad.loss, rel=tolerance)
        assert one.gradient_norm == pytest.approx(record.bad.gradient_norm, rel=tolerance)
    other = replace(record, bad=replace(record.bad, rng_state=None, dropout_key=None))
    masks = run_again_in(other, "64-true").gradient_norm
    assert masks != pytest.approx(record.bad.gradient_norm, rel=0.005)


@pytest.mark.parametrize(
    ("engine", "batches"),
    [("plain", 1), ("plain", 2), pytest.param("compiled", 1, marks=pytest.mark.slow)],
)
def test_replay_names_the_module_that_reads_a_bad_feature(
    engine: str, batches: int, tmp_path: Path, data: BarDataModule
) -> None:
    record = recorded(fault(engine=engine, batches=batches), tmp_path, data)
    (found,) = run_again(record)
    assert found.first is not None
    assert (found.first.place, found.first.kind) == ("blocks.0.0 (Linear)", "output")
    assert found.first.rows == found.bad_rows == (3,)
    assert found.bad_weights == ()


def test_replay_counts_rows_from_the_first_accumulated_batch(
    tmp_path: Path, data: BarDataModule
) -> None:
    case = replace(fault("target", "inf", batches=2), moment="last")  # batch 11: the second of two
    (found,) = run_again(recorded(case, tmp_path, data))
    assert found.first is not None
    assert found.first.rows in ((256 + 3,), ())
    assert found.bad_rows == (256 + 3,)


def test_replay_names_the_loss_for_an_infinite_target(tmp_path: Path, data: BarDataModule) -> None:
    (found,) = run_again(recorded(fault("target", "inf"), tmp_path, data))
    assert found.first is not None
    assert (found.first.place, found.first.kind) == ("loss", "output")
    assert found.bad_rows == (3,)


@pytest.mark.parametrize("engine", [pytest.param("plain", marks=pytest.mark.slow), "compiled"])
def test_replay_names_the_module_of_a_bad_weight(
    engine: str, tmp_path: Path, data: BarDataModule
) -> None:
    (found,) = run_again(recorded(fault("weight", engine=engine), tmp_path, data))
    assert found.bad_weights == ("head.weight",)
    assert found.first is not None
    assert found.first.place == "head (Linear)"
    assert len(found.first.rows) == 256


def test_replay_repeats_in_the_precision_of_the_run(tmp_path: Path, data: BarDataModule) -> None:
    first, second = run_again(recorded(fault("feature", "1e30"), tmp_path, data))
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
    x, net = record.bad.x.clone(), dict(record.bad.net)
    x[17] = 3e4
    net["head.weight"] = net["head.weight"] * 1e17
    found = run_again_in(replace(record, bad=replace(record.bad, x=x, net=net)), "32-true")
    assert found.first is not None
    assert found.loss == pytest.approx(found.loss)
    if found.first.kind == "gradient norm":
        assert found.first.rows[0] == 17


def test_replay_names_the_weight_that_the_step_would_break(
    tmp_path: Path, data: BarDataModule
) -> None:
    record = finite_record(fault(), tmp_path, data, "schedule.warmup=0")
    found = run_again_in(replace(record, bad=replace(record.bad, lr=1e30)), "64-true")
    assert found.first is not None
    assert found.first.kind == "weight"
    assert found.first.place.startswith("the optimizer's step of ")


class Root(nn.Module):
    """Its slope at 0 is infinite, its value is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().sqrt()


def test_detector_names_the_first_bad_gradient_of_the_backward_pass() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), Root(), nn.Linear(2, 1)).double()
    watch = NonFiniteDetector(net)
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    watch.check_output("loss", net(x).sum()).backward()
    assert watch.first is not None
    assert (watch.first.place, watch.first.kind) == (
        "0 (Linear)",
        "gradient of its output",
    )
    assert watch.first.rows == (1,)


def test_detector_keeps_the_first_bad_tensor() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    watch = NonFiniteDetector(net)
    net(torch.tensor([[torch.nan, 1.0]]))
    net(torch.tensor([[torch.inf, 1.0]]))
    assert watch.first is not None
    assert (watch.first.place, watch.first.rows) == ("0 (Linear)", (0,))
