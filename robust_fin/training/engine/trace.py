"""Tracing of a step: its inputs and graph, operator decompositions, and checks of the net."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import functional_call

from robust_fin.errors import RobustFinError

aten = torch.ops.aten


class UnsupportedStepError(RobustFinError):
    """A training step that the compiled engine cannot run with the results of the plain engine."""

    problem = "cannot train this"

    def __init__(self, reason: str) -> None:
        """Add the engine and what to change to the reason."""
        super().__init__(f"engine=compiled {self.problem}: {reason}. Use engine=plain")


class EngineDriftError(UnsupportedStepError):
    """The installed PyTorch is not like the releases that the compiled engine was written for."""

    problem = f"does not work with torch {torch.__version__}"


class LoopInputs(NamedTuple):
    """Tensors of a step, grouped by how the loop passes them.

    Attributes:
        carry: read and updated in place by every step.
        moving: one row per step.
        gathered: one batch per step, selected by row number from a data set.
        fixed: the same in every step.
    """

    carry: tuple[Tensor, ...]
    moving: tuple[Tensor, ...]
    gathered: tuple[Tensor, ...]
    fixed: tuple[Tensor, ...]

    def flat(self) -> list[Tensor]:
        """Return all tensors in the order of the fields."""
        return [tensor for field in self for tensor in field]

    def nested(self, flat: tuple[Tensor, ...]) -> "LoopInputs":
        """Group `flat` into fields of the same lengths as these."""
        rest = iter(flat)
        return LoopInputs(*(tuple(next(rest) for _ in field) for field in self))


StepBody = Callable[[LoopInputs], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]


# ------------------------------------------------------------------------------- the traced graph


class TracedStep(NamedTuple):
    """A step's graph. Its arguments are the inputs and the outputs, and it writes in place.

    Attributes:
        graph: returns nothing.
        inputs: examples of one step's inputs.
        outputs: examples of one step's outputs.
    """

    graph: fx.GraphModule
    inputs: LoopInputs
    outputs: tuple[Tensor, ...]

    @property
    def arguments(self) -> list[Tensor]:
        """Examples of the arguments in the graph's order."""
        return [*self.inputs.flat(), *self.outputs]

    def text(self) -> str:
        """Return everything that the compiled code depends on, the same in every process."""
        names: dict[fx.Node, str] = {}
        lines = []
        for node in self.graph.graph.nodes:
            names[node] = f"v{len(names)}"
            used = fx.node.map_arg((node.args, node.kwargs), lambda x: _Unquoted(names[x]))
            operator = str(node.target) if node.op == "call_function" else ""
            lines.append(f"{names[node]}={node.op}:{operator}{used}")
        lines += [f"{tuple(x.shape)}{x.stride()}{x.dtype}" for x in self.arguments]
        return "\n".join([*lines, str([len(field) for field in self.inputs])])


class _Unquoted(str):
    """A string whose repr has no quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def check_operators(module: fx.GraphModule) -> None:
    """Raise UnsupportedStepError if a graph holds constant tensors or random operators."""
    for node in module.graph.nodes:
        if node.op == "get_attr":
            raise UnsupportedStepError(
                f"a tensor is made from numbers inside the step ({node.target}); "
                "register it as a buffer"
            )
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise UnsupportedStepError(f"the step draws random numbers ({node.target})")


def write_in_place(module: fx.GraphModule, *, carried: int, first_output: int) -> None:
    """Copy the results into the carry and the outputs."""
    graph = module.graph
    holders = [node for node in graph.nodes if node.op == "placeholder"]
    holders = holders[:carried] + holders[first_output:]
    end = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(end):
        for holder, result in zip(holders, end.args[0], strict=True):
            graph.call_function(aten.copy_.default, (holder, result))
    end.args = ((),)
    module.recompile()


# -------------------------------------------------------------------------------- decompositions


def decompositions(matmul: str) -> dict[Any, Callable[..., Tensor]]:
    """Return replacements for operators that have no generated kernel.

    Args:
        matmul: `rows` also replaces matrix products by multiply and sum; `extern` keeps them.
    """
    table: dict[Any, Callable[..., Tensor]] = {
        aten._adaptive_avg_pool2d_backward.default: pool_backward
    }
    if matmul == "extern":
        return table
    return table | {
        aten.mm.default: _mm,
        aten.bmm.default: _bmm,
        aten.addmm.default: lambda bias, a, b, beta=1, alpha=1: beta * bias + alpha * _mm(a, b),
        aten.baddbmm.default: lambda bias, a, b, beta=1, alpha=1: beta * bias + alpha * _bmm(a, b),
        aten.mv.default: lambda a, b: (a * b).sum(1),
        aten.dot.default: lambda a, b: (a * b).sum(),
    }


def _mm(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    return (a.unsqueeze(-1) * b.unsqueeze(0)).sum(1)


def _bmm(a: Float[Tensor, "e n k"], b: Float[Tensor, "e k m"]) -> Float[Tensor, "e n m"]:
    return (a.unsqueeze(-1) * b.unsqueeze(1)).sum(2)


def pool_backward(
    grad: Float[Tensor, "*lead rows_out columns_out"], x: Float[Tensor, "*lead rows columns"]
) -> Float[Tensor, "*lead rows columns"]:
    """Compute the gradient of adaptive average pooling over the last two dimensions."""
    if grad.shape[-2] != x.shape[-2]:
        weights = _pool_weights(x.shape[-2], grad.shape[-2], like=grad)
        grad = (grad.unsqueeze(-2) * weights.unsqueeze(-1)).sum(-3)
    inner, outer = x.shape[-1], grad.shape[-1]
    if inner == outer:
        return grad
    if inner % outer == 0:  # windows of equal length: no sum over windows
        share = (grad / (inner // outer)).unsqueeze(-1)
        return share.expand(*grad.shape, inner // outer).reshape(*grad.shape[:-1], inner)
    weights = _pool_weights(inner, outer, like=grad)
    return (grad.unsqueeze(-1) * weights).sum(-2)


def _pool_weights(inner: int, outer: int, *, like: Tensor) -> Float[Tensor, "outer inner"]:
    """Return the weight of each input in each pooling window."""
    at = torch.arange(inner, device=like.device)
    window = torch.arange(outer, device=like.device).unsqueeze(1)
    first = (window * inner) // outer
    after = ((window + 1) * inner + outer - 1) // outer
    inside = ((at >= first) & (at < after)).to(like.dtype)
    return inside / (after - first).to(like.dtype)  # 1.0 / integers would be float32


# --------------------------------------------------------------------------------- checks of a net


def check_net(
    net: nn.Module, x: Float[Tensor, "batch features"], *, objective: Callable[[Tensor], Tensor]
) -> None:
    """Run one forward and backward pass on copies and check that a compiled step can repeat it.

    Args:
        net: not changed.
        x: one batch.
        objective: raw scores -> loss.

    Raises:
        UnsupportedStepError: a module changes a buffer or draws random numbers, or the loss does
            not depend on a trained parameter (AdamW skips it; a flat step would decay it).
    """
    trained = {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad}
    buffers = {name: buffer.detach().clone() for name, buffer in net.named_buffers()}
    leaves = [tensor.requires_grad_() for tensor in trained.values()]
    loss = objective(_checked_scores(net, {**trained, **buffers}, x.clone()))
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    unused = [name for name, grad in zip(trained, gradients, strict=True) if grad is None]
    if unused:
        raise UnsupportedStepError(f"the loss does not depend on {', '.join(unused)}")


def _checked_scores(net: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """Call the net with hooks that name the module that breaks a rule."""
    before = {name: (t, t._version, t.detach().clone()) for name, t in tensors.items()}
    random_states: list[Tensor] = []

    def enter(module: nn.Module, args: Any) -> None:  # noqa: ARG001
        random_states.append(torch.get_rng_state())

    hooks = []
    for path, module in net.named_modules():
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(
            module.register_forward_hook(partial(_check_module, random_states, before, path))
        )
    try:
        return functional_call(net, tensors, (x,))
    finally:
        for hook in hooks:
            hook.remove()


def _check_module(
    random_states: list[Tensor],
    before: dict[str, tuple[Tensor, int, Tensor]],
    path: str,
    module: nn.Module,
    args: Any,  # noqa: ARG001
    output: Any,  # noqa: ARG001
) -> None:
    """Compare the random state and the module's buffers with those before its forward pass."""
    name = f"{path or 'the net'} ({type(module).__name__})"
    if not torch.equal(random_states.pop(), torch.get_rng_state()):
        raise UnsupportedStepError(f"{name} draws random numbers")
    changed = []
    for key, now in module.named_buffers(recurse=False):
        buffer = f"{path}.{key}" if path else key
        if buffer not in before:  # shared with a module that was listed first
            continue
        old, version, value = before[buffer]
        # batch_norm writes without counting a version, so the values are compared too
        same = now is old and now._version == version
        if not (same and torch.allclose(now, value, rtol=0, atol=0, equal_nan=True)):
            changed.append(key)
    if changed:
        raise UnsupportedStepError(
            f"{name} changes its buffers {', '.join(changed)} in every step; use a module without "
            "running statistics"
        )
