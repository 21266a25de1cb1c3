import pytest
import torch

from robust_fin.training.engine.step_state import step_scalars

BETAS = (0.9, 0.999)


def test_scalars_are_those_of_torch_optim_adamw() -> None:
    lr = torch.tensor([1e-3, 2e-3, 3e-3], dtype=torch.float64)
    got = step_scalars(lr, first_step=4, weight_decay=0.1, betas=BETAS)
    wanted = [
        [rate / (1 - 0.9**step), 1 - rate * 0.1, (1 - 0.999**step) ** 0.5]
        for rate, step in zip(lr.tolist(), (5, 6, 7), strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-13, atol=0)


@pytest.mark.parametrize("first", [0, 1, 28, 31, 500])
@pytest.mark.parametrize("steps", [1, 3, 4, 13])
def test_a_steps_scalars_do_not_depend_on_where_its_call_began(first: int, steps: int) -> None:
    lr = torch.linspace(1e-4, 1e-2, 600, dtype=torch.float64)
    whole = step_scalars(lr, first_step=0, weight_decay=0.1, betas=BETAS)
    rates = lr[first : first + steps]
    part = step_scalars(rates, first_step=first, weight_decay=0.1, betas=BETAS)
    assert torch.equal(part, whole[first : first + steps])
