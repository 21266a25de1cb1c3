"""AdamW scalars and hashed dropout."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_fin.training.engine.step_state import HashedDropout, hash32, step_keys, step_scalars

BETAS = (0.9, 0.999)


def test_step_scalars_match_torch_adamw() -> None:
    lr = torch.tensor([1e-3, 2e-3, 3e-3], dtype=torch.float64)
    got = step_scalars(lr, first_step=4, weight_decay=0.1, betas=BETAS)
    wanted = [
        [rate / (1 - 0.9**step), 1 - rate * 0.1, (1 - 0.999**step) ** 0.5]
        for rate, step in zip(lr.tolist(), (5, 6, 7), strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-13, atol=0)


@pytest.mark.parametrize("first", [0, 1, 28, 31, 500])
@pytest.mark.parametrize("steps", [1, 3, 4, 13])
def test_step_scalars_do_not_depend_on_the_start_of_the_call(first: int, steps: int) -> None:
    lr = torch.linspace(1e-4, 1e-2, 600, dtype=torch.float64)
    whole = step_scalars(lr, first_step=0, weight_decay=0.1, betas=BETAS)
    rates = lr[first : first + steps]
    part = step_scalars(rates, first_step=first, weight_decay=0.1, betas=BETAS)
    assert torch.equal(part, whole[first : first + steps])


def by_hand(counter: int, key: int) -> int:
    """The hash in Python's integers, cut to 32 bits after each operation."""
    bits = counter * 0x9E3779B1 & 0xFFFFFFFF
    bits = (bits ^ bits >> 16) * 0x7FEB352D + key & 0xFFFFFFFF
    bits = (bits ^ bits >> 15) * 0x846CA68B & 0xFFFFFFFF
    return bits ^ bits >> 16


def test_hash_matches_unsigned_arithmetic() -> None:
    counters, keys = [0, 1, 2, 12345, 2**31 - 1], [0, 7, 2**31 - 1]
    for key in keys:
        got = hash32(
            torch.tensor(counters, dtype=torch.int32), torch.tensor(key, dtype=torch.int32)
        )
        assert [int(one) % 2**32 for one in got] == [by_hand(one, key) for one in counters]


def test_keys_continue_across_calls() -> None:
    whole = step_keys(3, first_step=0, steps=10)
    assert whole.dtype == torch.int32
    assert torch.equal(whole[4:], step_keys(3, first_step=4, steps=6))
    assert len({*whole.tolist(), *step_keys(4, first_step=0, steps=10).tolist()}) == 20
    assert torch.equal(whole, step_keys(3 + 2**32, first_step=0, steps=10))


def masks(steps: int, shape: tuple[int, ...], rate: float, *, seed: int = 0) -> torch.Tensor:
    ones = torch.ones(shape)
    drawn = []
    for key in step_keys(seed, first_step=0, steps=steps):
        with HashedDropout(key):
            drawn.append(F.dropout(ones, rate))
    return torch.stack(drawn)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_masks_keep_the_rate_and_the_mean(rate: float) -> None:
    drawn = masks(200, (64, 32), rate)
    kept = drawn > 0
    error = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert float(kept.double().mean()) == pytest.approx(1 - rate, abs=4 * error)
    assert float(drawn.double().mean()) == pytest.approx(1.0, abs=4 * error / (1 - rate))
    assert set(drawn[kept].tolist()) == {float(torch.tensor(1 / (1 - rate)))}


def test_masks_are_uncorrelated() -> None:
    kept = (masks(400, (512,), 0.5) > 0).double() - 0.5
    noise = 4 / kept.numel() ** 0.5
    for shift in (1, 2, 16, 64):  # along positions, along steps, and both
        assert abs(float((kept[:, shift:] * kept[:, :-shift]).mean() * 4)) < 1.1 * noise
        assert abs(float((kept[shift:] * kept[:-shift]).mean() * 4)) < 1.1 * noise
        assert abs(float((kept[shift:, shift:] * kept[:-shift, :-shift]).mean() * 4)) < 1.1 * noise
    other = (masks(400, (512,), 0.5, seed=1) > 0).double() - 0.5
    assert abs(float((kept * other).mean() * 4)) < noise
    per_position, per_step = kept.mean(0) * 2, kept.mean(1) * 2
    assert float(per_position.square().mean()) == pytest.approx(1 / 400, rel=0.3)
    assert float(per_step.square().mean()) == pytest.approx(1 / 512, rel=0.3)


def test_two_layers_draw_different_masks_and_a_second_forward_the_same() -> None:
    layer, ones = nn.Dropout(0.5), torch.ones(1000)
    key = step_keys(0, first_step=0, steps=1)[0]
    with HashedDropout(key):
        first, second = layer(ones), layer(ones)
    with HashedDropout(key):
        again = layer(ones)
    assert torch.equal(first, again)
    assert 0.4 < float((first == second).double().mean()) < 0.6


def test_explicit_rate_replaces_the_rate_of_the_layers() -> None:
    layer, ones = nn.Dropout(0.5), torch.ones(20_000)
    key = step_keys(0, first_step=0, steps=1)[0]
    with HashedDropout(key, rate=torch.tensor(0.1)):
        kept = layer(ones) > 0
    with HashedDropout(key):
        assert torch.equal(kept, F.dropout(ones, 0.1) > 0)
    with HashedDropout(key, rate=torch.tensor(0.0)):
        assert torch.equal(layer(ones), ones)
    with HashedDropout(key, rate=torch.tensor(0.1)):
        assert torch.equal(layer.eval()(ones), ones)


def test_rate_one_gives_zeros_not_nan() -> None:
    assert float(masks(1, (16,), 1.0).abs().sum()) == 0.0
