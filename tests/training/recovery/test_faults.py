"""A fit with any fault ends as the policy defines and never with non-finite weights."""

from pathlib import Path

import pytest
import torch

from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import NonFiniteError
from robust_fin.runs.training import load_first_fold
from robust_fin.training.recovery.guard import check_finite_weights
from robust_fin.training.recovery.record import read_record
from tests.training.faults import (
    BATCHES,
    Fault,
    all_faults,
    covering_faults,
    faulty_loss,
    fit_with,
    settings,
)

ALL_FAULTS, COVERING_FAULTS = all_faults(), covering_faults()


@pytest.fixture(scope="module")
def data() -> BarDataModule:
    return load_first_fold(settings(ALL_FAULTS[0]))


def test_fault_matrix_is_complete() -> None:
    assert len(ALL_FAULTS) == len(set(ALL_FAULTS)) == 5 * 3 * 3 * 5 * 2
    assert set(COVERING_FAULTS) < set(ALL_FAULTS)
    assert len(COVERING_FAULTS) <= 16


def test_faulty_loss_is_the_squared_error_without_a_signal() -> None:
    score, target = torch.tensor([0.2, 0.6], requires_grad=True), torch.tensor([0.1, 0.9])
    loss = faulty_loss(score, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((0.1**2 + 0.3**2) / 2)
    assert score.grad is not None
    assert score.grad.tolist() == pytest.approx([0.1, -0.3])


@pytest.mark.parametrize("kind", [3, 4, 5])
def test_gradient_fault_leaves_the_loss_finite(kind: int) -> None:
    score = torch.tensor([0.2, 0.6], requires_grad=True)
    loss = faulty_loss(score, torch.tensor([0.1, 71.0 + kind]))
    loss.backward()
    assert loss.isfinite()
    assert score.grad is not None
    assert not score.grad.norm().isfinite()


def check(fault: Fault, folder: Path, data: BarDataModule) -> None:
    """Run a fit with the fault and check that it ends as the policy defines."""
    if fault.passes or fault.heals:
        done = fit_with(fault, folder, data)
        check_finite_weights(done.nets.net, when="at the end")
        assert done.summary.steps == fault.last_step + 1
        expected = (0, 0) if fault.passes else (1, 1)
        assert (done.summary.rollbacks, done.summary.nonfinite_steps) == expected
    else:
        with pytest.raises(NonFiniteError, match=message(fault)):
            fit_with(fault, folder, data)
    for path in (folder / "checkpoints").glob("*.ckpt"):
        for name, values in torch.load(path, weights_only=True)["state_dict"].items():
            assert values.norm().isfinite(), f"{name} in {path.name}"
    check_records(fault, folder)


def message(fault: Fault) -> str:
    """Return a pattern for the error: the step, and the number of rollbacks if any."""
    after = r".*\(after 1 rollbacks; stability.max_rollbacks=1\)" * (fault.policy == "rollback")
    if fault.place == "weight" and fault.moment == "last":
        return rf"weights are not finite at step {fault.last_step + 1}: net.head.weight{after}"
    return rf"at step {fault.step}, before the weights were changed{after}"


def check_records(fault: Fault, folder: Path) -> None:
    """Check that every rejected step has a record of that step."""
    records = sorted((folder / "nonfinite").glob("*"))
    unseen = fault.passes or (fault.place == "weight" and fault.moment == "last")
    attempts = 2 if fault.policy == "rollback" and not fault.heals else 1
    assert len(records) == (0 if unseen else attempts)
    for path in records:
        record = read_record(path)
        assert record.bad.step == fault.step
        assert len(record.norms) == min(fault.step, 100) or path.stem.endswith("_2")
        assert record.bad.batches == min(fault.batches, BATCHES - fault.step * fault.batches)


@pytest.mark.parametrize("fault", COVERING_FAULTS, ids=str)
def test_fit_with_a_fault_ends_as_the_policy_defines(
    fault: Fault, tmp_path: Path, data: BarDataModule
) -> None:
    check(fault, tmp_path, data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [one for one in ALL_FAULTS if one not in COVERING_FAULTS], ids=str
)
def test_fit_with_any_fault_ends_as_the_policy_defines(
    fault: Fault, tmp_path: Path, data: BarDataModule
) -> None:
    check(fault, tmp_path, data)
