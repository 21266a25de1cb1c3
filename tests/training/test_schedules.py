import pytest

from robust_fin.training.losses import warmup_constant, warmup_cosine, warmup_linear


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1 / 1000), (499, 0.5), (999, 1), (1000, 1), (9**9, 1)]
)
def test_constant_after_a_warmup_of_1000(step: int, factor: float) -> None:
    assert warmup_constant(step, warmup=1000, total=10) == factor


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (9, 1), (10, 1), (60, 0.5), (110, 0), (500, 0)]
)
def test_cosine(step: int, factor: float) -> None:
    assert warmup_cosine(step, warmup=10, total=110, floor=0.0) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (9, 1), (10, 1), (35, 0.8), (110, 0.2), (500, 0.2)]
)
def test_linear_to_a_floor(step: int, factor: float) -> None:
    assert warmup_linear(step, warmup=10, total=110, floor=0.2) == pytest.approx(factor)


def test_no_warmup_starts_at_the_full_rate() -> None:
    assert warmup_constant(0, warmup=0, total=10) == 1
    assert warmup_cosine(0, warmup=0, total=10, floor=0.0) == 1
