"""Members one by one, in compiled blocks or stacked match an eager loop."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from robust_fin.models.mlp import sigmoid
from robust_fin.training.engine.step_state import StepState
from robust_fin.training.engine.steps import StepLoop, StepResult
from robust_fin.training.engine.trace import EngineDriftError
from robust_fin.training.losses import huber
from robust_fin.training.population import steps as population_steps
from robust_fin.training.population.members import MemberStates
from robust_fin.training.population.steps import (
    LoopedMembers,
    MemberEngine,
    MemberWork,
    StackedMembers,
)
from robust_fin.training.settings import AUTO
from tests.training.engine.plain_steps import (
    BATCH,
    F64,
    FEATURES,
    SETTINGS,
    adamw,
    data,
    furthest,
    plain,
    residual,
    row_numbers,
    warmup,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")

MEMBERS, STEPS, BLOCK = 5, 20, 4  # a whole block, and a rest of one
RATES, DELTAS = (0.0, 0.3, 0.1, 0.0, 0.5), (0.1, 0.02, 0.3, 0.05, 1.0)
MakeEngine = Callable[[int | str], MemberEngine]


def net_of(member: int) -> nn.Module:
    torch.manual_seed(member)
    return residual([8, 4], dropout=0.1).double().train()


def with_delta(score: Tensor, target: Tensor, delta: Tensor) -> Tensor:
    return huber(score, target, delta=delta)


def work_of(member: int) -> MemberWork:
    """Every setting is the member's own."""
    x, target = data(500, dtype=F64)
    return MemberWork(
        x,
        target,
        row_numbers(STEPS, rows=499, seed=member),
        warmup(STEPS, lr=1e-3 * (member + 1)),
        weight_decay=0.01 * member,
        seed=10 + member,
        loss_setting=torch.tensor(DELTAS[member], dtype=F64),
        dropout=torch.tensor(RATES[member], dtype=F64),
    )


@pytest.fixture(scope="module")
def loop() -> StepLoop:
    return StepLoop(
        net_of(0),
        link=sigmoid,
        loss=with_delta,
        batch_size=BATCH,
        features=FEATURES,
        settings=SETTINGS,
        loss_takes_setting=True,
        own_dropout=True,
    )


@pytest.fixture(scope="module", params=["looped", "blocks", "stacked"])
def make(request: pytest.FixtureRequest, loop: StepLoop) -> MakeEngine:
    """An engine in float64 that takes so many members at once."""
    if request.param == "stacked":
        return lambda block: StackedMembers(loop.step, block=block)
    blocks = LoopedMembers(loop, block=1 if request.param == "looped" else BLOCK)
    return lambda block: blocks if block == BLOCK else LoopedMembers(loop, block=block)


def states_of() -> MemberStates:
    return MemberStates([net_of(k) for k in range(MEMBERS)])


def take(
    engine: MemberEngine, states: MemberStates, work: Sequence[MemberWork], *, block: int
) -> list[StepResult]:
    """All members' steps, `block` of them a call."""
    found: list[StepResult] = []
    for first in range(0, len(work), block):
        part = range(first, min(first + block, len(work)))
        rows = [states.state(k) for k in part]
        found += engine.run(rows, work[first : first + block])
        for k, row in zip(part, rows, strict=True):
            states.count[k] = row.count
    return found


def test_every_member_matches_an_eager_loop_with_its_own_settings(make: MakeEngine) -> None:
    states, work = states_of(), [work_of(k) for k in range(MEMBERS)]
    found = take(make(BLOCK), states, work, block=BLOCK)
    for k, (one, result) in enumerate(zip(work, found, strict=True)):
        twin = net_of(k)
        wanted = plain(
            twin, adamw(twin, weight_decay=one.weight_decay), x=one.x, target=one.target,
            rows=one.rows, lr=one.lr, seed=one.seed, rate=one.dropout, delta=DELTAS[k],
        )  # fmt: skip
        reached = net_of(k)
        nn.utils.vector_to_parameters(states.weights[k], reached.parameters())
        assert furthest(reached, twin) <= 1e-10
        torch.testing.assert_close(result.loss, wanted.loss, atol=1e-12, rtol=0)
        torch.testing.assert_close(result.gradient_norm, wanted.gradient_norm, atol=1e-12, rtol=0)
        assert (result.first_bad, int(states.count[k])) == (None, STEPS)


def test_split_calls_equal_one_call(make: MakeEngine) -> None:
    whole, cut = states_of(), states_of()
    work = [work_of(k) for k in range(MEMBERS)]
    take(make(BLOCK), whole, work, block=BLOCK)
    for part in (slice(0, 7), slice(7, STEPS)):
        some = [one._replace(rows=one.rows[part], lr=one.lr[part]) for one in work]
        take(make(BLOCK), cut, some, block=BLOCK)
    for name in ("weights", "exp_avg", "exp_avg_sq", "count"):
        assert torch.equal(getattr(whole, name), getattr(cut, name)), name


@pytest.mark.parametrize(
    "bad", [7, pytest.param(0, marks=pytest.mark.slow), pytest.param(19, marks=pytest.mark.slow)]
)
def test_poisoned_member_is_frozen_and_the_others_keep_every_bit(
    make: MakeEngine, bad: int
) -> None:
    healthy, poisoned, before = states_of(), states_of(), states_of()
    work = [work_of(k) for k in range(MEMBERS)]
    take(make(BLOCK), healthy, work, block=BLOCK)
    sick = list(work)
    x = work[0].x.clone()
    x[499, 2] = float("nan")
    rows = work[1].rows.clone()
    rows[bad, 5] = 499
    sick = [one._replace(x=x) for one in work]
    sick[1] = sick[1]._replace(rows=rows)
    found = take(make(BLOCK), poisoned, sick, block=BLOCK)
    assert [one.first_bad for one in found] == [None, bad, *[None] * (MEMBERS - 2)]
    assert poisoned.living().tolist() == [k != 1 for k in range(MEMBERS)]
    assert poisoned.count.tolist() == [bad if k == 1 else STEPS for k in range(MEMBERS)]
    others = [k for k in range(MEMBERS) if k != 1]
    for name in ("weights", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(poisoned, name)[others], getattr(healthy, name)[others])
    if bad:
        some = [one._replace(rows=one.rows[:bad], lr=one.lr[:bad]) for one in work]
        take(make(BLOCK), before, some, block=BLOCK)
    assert torch.equal(poisoned.weights[1], before.weights[1])
    again = take(make(BLOCK), poisoned, work, block=BLOCK)
    assert again[1].first_bad == 0
    assert int(poisoned.count[1]) == bad
    assert torch.equal(poisoned.weights[1], before.weights[1])


def test_members_one_by_one_equal_the_single_loop_bit_for_bit(loop: StepLoop) -> None:
    states, work = states_of(), [work_of(k) for k in range(MEMBERS)]
    take(LoopedMembers(loop), states, work, block=1)
    for k, one in enumerate(work):
        alone = StepState(net_of(k))
        loop.run(alone, **one._asdict())
        assert torch.equal(states.weights[k], alone.parameters)
        assert torch.equal(states.exp_avg[k], alone.exp_avg)
        assert torch.equal(states.exp_avg_sq[k], alone.exp_avg_sq)


def test_threads_do_not_share_weights(make: MakeEngine) -> None:
    engine = make(1)
    alone, together = states_of(), states_of()
    work = [work_of(k) for k in range(MEMBERS)]
    work = [one._replace(rows=one.rows[:6], lr=one.lr[:6]) for one in work]
    take(engine, alone, work, block=1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: engine.run([together.state(k)], [work[k]]), range(MEMBERS)))
    assert torch.equal(alone.weights, together.weights)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LoopedMembers, StackedMembers])
def test_auto_measures_a_block_and_does_not_change_the_members(
    kind: type[LoopedMembers] | type[StackedMembers], loop: StepLoop
) -> None:
    engine = LoopedMembers(loop, block=AUTO)
    choices = {1, 8, 32}
    if kind is StackedMembers:
        engine, choices = StackedMembers(loop.step, block=AUTO), {16, 64, 256}
    states = MemberStates([net_of(k % MEMBERS) for k in range(32)])
    before = copy.deepcopy(states.state_dict())
    work = [work_of(k % MEMBERS) for k in range(32)]
    rows = [states.state(k) for k in range(32)]
    engine.settle(rows, work)
    assert engine.block in choices
    assert [row.count for row in rows] == [0] * 32
    assert all(torch.equal(before[name], one) for name, one in states.state_dict().items())
    found = engine.run(rows[: engine.block], work[: engine.block])
    assert [one.first_bad for one in found] == [None] * min(engine.block, 32)


def test_block_that_cannot_be_compiled_falls_back_to_members_one_by_one(
    loop: StepLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EngineDriftError("KeyError: 'buf0'")

    monkeypatch.setattr(population_steps, "compile_step", fail)
    together, alone = states_of(), states_of()
    work = [work_of(k) for k in range(MEMBERS)]
    take(LoopedMembers(loop, block=BLOCK), together, work, block=BLOCK)
    take(LoopedMembers(loop), alone, work, block=1)
    assert torch.equal(together.weights, alone.weights)
    (record,) = caplog.records
    assert f"torch {torch.__version__}: KeyError: 'buf0'" in record.getMessage()
    assert record.getMessage().endswith(f"one by one instead of {BLOCK} at a time")
