"""Properties of every loss in conf/loss."""

import inspect
import itertools

import pytest
import torch
from jaxtyping import TypeCheckError

from robust_fin.cli.composition import conf_folder
from robust_fin.errors import ConfigError
from robust_fin.models.mlp import identity
from robust_fin.runs.training import bound_function
from robust_fin.training.engine.steps import StepLoop, StepSettings
from robust_fin.training.losses import check_same_shape
from tests.bars import config
from tests.for_every import for_every

LOSSES = sorted(path.stem for path in (conf_folder() / "loss").glob("*.yaml"))
LOSS_OF = {name: bound_function(config(f"loss={name}").loss) for name in LOSSES}
SCORE = torch.tensor([0.1, 0.5, 0.8, 0.3])
TARGET = torch.tensor([0.15, 0.45, 0.9, 0.32])  # each target is nearest to its own score


def test_conf_loss_contains_the_known_losses() -> None:
    assert {"huber", "squared", "absolute"} <= set(LOSSES)


@for_every("name, pair", itertools.product(LOSSES, itertools.combinations(range(4), 2)))
def test_swapping_two_labels_raises_the_loss(name: str, pair: tuple[int, int]) -> None:
    loss = LOSS_OF[name]
    order = torch.arange(4)
    order[list(pair)] = order[list(reversed(pair))]
    assert float(loss(SCORE, TARGET[order])) > float(loss(SCORE, TARGET)) + 1e-3


@for_every("name", LOSSES)
def test_larger_error_has_larger_loss_and_no_error_has_loss_0(name: str) -> None:
    loss = LOSS_OF[name]
    assert float(loss(TARGET, TARGET)) == 0.0
    worse = SCORE.clone()
    worse[1] += 0.2  # away from 0.45
    assert loss(worse, TARGET) > loss(SCORE, TARGET)


@for_every("name, shape", itertools.product(LOSSES, [(4, 1), (1, 4), (1,), ()]))
def test_target_that_would_broadcast_raises(name: str, shape: tuple[int, ...]) -> None:
    target = torch.zeros(shape)
    with pytest.raises(TypeCheckError):
        LOSS_OF[name](SCORE, target)
    unchecked = inspect.unwrap(LOSS_OF[name].func)  # as in training, where no types are checked
    with pytest.raises(ConfigError, match="they would broadcast"):
        unchecked(SCORE, target, **LOSS_OF[name].keywords)


def test_net_whose_scores_would_broadcast_raises_before_compilation() -> None:
    settings = StepSettings(clip=None, betas=(0.9, 0.999), eps=1e-8)
    with pytest.raises(ConfigError, match=r"score has shape \(16, 1\) and target \(16,\)"):
        StepLoop(
            torch.nn.Linear(5, 1),
            link=identity,
            loss=torch.nn.functional.mse_loss,
            batch_size=16,
            features=5,
            settings=settings,
        )


def test_shape_error_contains_both_shapes() -> None:
    with pytest.raises(ConfigError, match=r"score has shape \(4,\) and target \(4, 1\)"):
        check_same_shape(SCORE, TARGET.unsqueeze(1))
