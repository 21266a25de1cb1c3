import numpy as np
import pytest
from scipy.stats import spearmanr

from robust_fin.ranking.candidates import collinear_groups, rank_correlations


def test_correlations_are_those_of_scipy() -> None:
    x = np.random.default_rng(0).normal(size=(300, 4)).round(1)
    x[:, 3] = -np.exp(x[:, 0])
    assert rank_correlations(x) == pytest.approx(spearmanr(x).statistic, abs=1e-12)
    assert rank_correlations(x)[0, 3] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("least", "groups"),
    [
        (0.9, ((0,), (1,), (2,), (3,))),
        (0.75, ((0, 1), (2,), (3,))),  # 1 and 2 are alike too, however 0 and 2 are not
        (0.5, ((0, 1, 2), (3,))),
        (0.1, ((0, 1, 2, 3),)),
    ],
)
def test_every_two_of_a_group_are_alike(least: float, groups: tuple[tuple[int, ...], ...]) -> None:
    correlation = np.eye(4)
    for (one, other), value in {
        (0, 1): -0.85, (1, 2): 0.8, (0, 2): 0.6, (0, 3): 0.2, (1, 3): 0.2, (2, 3): -0.2,
    }.items():  # fmt: skip
        correlation[one, other] = correlation[other, one] = value
    assert collinear_groups(correlation, least=least) == groups


def test_one_column_is_a_group() -> None:
    found = rank_correlations(np.arange(5.0)[:, None])
    assert found.tolist() == [[1.0]]
    assert collinear_groups(found, least=0.7) == ((0,),)


def test_equal_columns_are_one_group_at_a_correlation_of_1() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    correlation = rank_correlations(np.concatenate([x, x[:, :1] ** 3], axis=1))
    assert collinear_groups(correlation, least=1.0) == ((0, 2), (1,))
