"""One training step as a graph of operators, or the reason why it cannot be one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from robust_fin.errors import RobustFinError

aten = torch.ops.aten


class UnsupportedStepError(RobustFinError):
    """A step that the compiled loop cannot run as the plain engine would."""

    def __init__(self, reason: str) -> None:
        """Say what to do beside the reason."""
        super().__init__(f"engine=compiled cannot train this: {reason}. Use engine=plain")


class LoopInputs(NamedTuple):
    """The tensors of a step, by how the loop hands them over.

    Attributes:
        carry: read and written in place by every step.
        moving: one row a step.
        gathered: one batch a step, picked by row number out of a data set.
        fixed: the same in every step.
    """

    carry: tuple[Tensor, ...]
    moving: tuple[Tensor, ...]
    gathered: tuple[Tensor, ...]
    fixed: tuple[Tensor, ...]

    def flat(self) -> list[Tensor]:
        """All of them in the order of the fields."""
        return [one for field in self for one in field]

    def nested(self, flat: tuple[Tensor, ...]) -> "LoopInputs":
        """`flat` cut into fields as long as these."""
        rest = iter(flat)
        return LoopInputs(*(tuple(next(rest) for _ in field) for field in self))


StepBody = Callable[[LoopInputs], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]


class TracedStep(NamedTuple):
    """A step's graph; its arguments are the inputs, then the outputs, and it writes in place.

    Attributes:
        graph: returns nothing.
        inputs: examples of one step.
        outputs: examples of what one step puts out.
    """

    graph: fx.GraphModule
    inputs: LoopInputs
    outputs: tuple[Tensor, ...]

    @property
    def arguments(self) -> list[Tensor]:
        """In the graph's order."""
        return [*self.inputs.flat(), *self.outputs]

    def text(self) -> str:
        """Everything that the compiled code depends on, the same in every process."""
        names: dict[fx.Node, str] = {}
        lines = []
        for node in self.graph.graph.nodes:
            names[node] = f"v{len(names)}"
            used = fx.node.map_arg((node.args, node.kwargs), lambda one: _Name(names[one]))
            lines.append(f"{names[node]}={node.op}:{_operator(node)}{used}")
        lines += [f"{tuple(a.shape)}{a.stride()}{a.dtype}" for a in self.arguments]
        return "\n".join([*lines, str([len(field) for field in self.inputs])])


class _Name(str):
    """A text whose repr has no quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _operator(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_function" else ""


def trace_step(body: StepBody, inputs: LoopInputs, *, matmul: str) -> TracedStep:
    """Trace a step into a graph that updates the carry and fills the outputs in place.

    Args:
        body: the step: inputs -> the carry after it, and its outputs.
        inputs: examples; they are not written to.
        matmul: `rows` writes products as multiply and sum, which fuse with what surrounds them;
            `extern` leaves them to the library, which pays for large ones.

    Raises:
        UnsupportedStepError: control flow that depends on values, a random operator, or a tensor
            made from numbers inside the step.
    """
    flat = inputs.flat()
    # the tracer tells inputs apart by their memory
    assert len({one.untyped_storage().data_ptr() for one in flat}) == len(flat)

    def step(*arguments: Tensor) -> tuple[Tensor, ...]:
        carry, outputs = body(inputs.nested(arguments[: len(flat)]))
        return (*carry, *outputs)

    try:
        with torch.no_grad():
            results = step(*(one.clone() for one in flat))
        outputs = tuple(torch.zeros_like(one) for one in results[len(inputs.carry) :])
        make = make_fx(step, decomposition_table=decompositions(matmul), tracing_mode="fake")
        graph = make(*flat, *outputs)
    except RuntimeError as error:
        what = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
        raise UnsupportedStepError(f"it cannot be traced ({what})") from error
    _refuse_operators(graph)
    _write_in_place(graph, kept=len(inputs.carry), before=len(flat))
    return TracedStep(graph, inputs, outputs)


def _refuse_operators(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            raise UnsupportedStepError(
                f"a tensor is made from numbers inside the step ({node.target}); "
                "register it as a buffer"
            )
        if isinstance(node.target, torch._ops.OpOverload) and is_random(node.target):
            raise UnsupportedStepError(f"the step draws random numbers ({node.target})")


def is_random(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator draws from a generator."""
    return torch.Tag.nondeterministic_seeded in operator.tags


def _write_in_place(module: fx.GraphModule, *, kept: int, before: int) -> None:
    """Copy the results into the carry (the first `kept`) and the outputs (after `before`)."""
    graph = module.graph
    holders = [node for node in graph.nodes if node.op == "placeholder"]
    end = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(end):
        for holder, result in zip(holders[:kept] + holders[before:], end.args[0], strict=True):
            graph.call_function(aten.copy_.default, (holder, result))
    end.args = ((),)
    module.recompile()


# -------------------------------------------------------------------------------- decompositions


def decompositions(matmul: str) -> dict[Any, Callable[..., Tensor]]:
    """Operators without a generated kernel, written in those that have one.

    Args:
        matmul: `rows` or `extern`, see `trace_step`.
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
    """Gradient of adaptive average pooling over the last two dimensions."""
    if grad.shape[-2] != x.shape[-2]:
        weights = _pool_weights(x.shape[-2], grad.shape[-2], like=grad)
        grad = (grad.unsqueeze(-2) * weights.unsqueeze(-1)).sum(-3)
    inner, outer = x.shape[-1], grad.shape[-1]
    if inner == outer:
        return grad
    if inner % outer == 0:  # windows of one length: no sum over windows
        share = (grad / (inner // outer)).unsqueeze(-1)
        return share.expand(*grad.shape, inner // outer).reshape(*grad.shape[:-1], inner)
    weights = _pool_weights(inner, outer, like=grad)
    return (grad.unsqueeze(-1) * weights).sum(-2)


def _pool_weights(inner: int, outer: int, *, like: Tensor) -> Float[Tensor, "outer inner"]:
    """Share of each input in each window."""
    at = torch.arange(inner, device=like.device)
    window = torch.arange(outer, device=like.device).unsqueeze(1)
    first = (window * inner) // outer
    after = ((window + 1) * inner + outer - 1) // outer
    inside = ((at >= first) & (at < after)).to(like.dtype)
    return inside / (after - first).to(like.dtype)  # not 1.0 / integers, which is float32


Objective = Callable[[Tensor], Tensor]  # raw scores -> loss


class _NoRandomOperators(TorchDispatchMode):
    """Stops at an operator that draws from a generator, and says in which module."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if is_random(func):
            raise UnsupportedStepError(f"{self.inside[-1]} draws random numbers ({func})")
        return func(*args, **(kwargs or {}))


def check_step(net: nn.Module, x: Float[Tensor, "batch features"], *, objective: Objective) -> None:
    """Run one forward and backward pass on copies, and refuse what a compiled one would change.

    Args:
        net: left as it is.
        x: a batch.
        objective: raw scores -> the loss.

    Raises:
        UnsupportedStepError: a module that changes a buffer or draws random numbers, or a trained
            parameter that takes no part in the loss (AdamW skips it; a flat step would decay it).
    """
    trained = {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad}
    buffers = {name: one.detach().clone() for name, one in net.named_buffers()}
    leaves = [one.requires_grad_() for one in trained.values()]
    loss = objective(_watched_call(net, {**trained, **buffers}, x.clone()))
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    unused = [name for name, one in zip(trained, gradients, strict=True) if one is None]
    if unused:
        raise UnsupportedStepError(f"{', '.join(unused)} take no part in the loss")


def _watched_call(net: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The net's scores, with hooks that know which module runs."""
    watch = _NoRandomOperators()
    before = {name: (one, one._version, one.detach().clone()) for name, one in tensors.items()}
    hooks = []
    for name, module in net.named_modules():
        place = f"{name or 'the net'} ({type(module).__name__})"
        hooks.append(module.register_forward_pre_hook(_push(watch.inside, place)))
        hooks.append(module.register_forward_hook(_pop(watch.inside, before, name)))
    try:
        with watch:
            return functional_call(net, tensors, (x,))
    finally:
        for hook in hooks:
            hook.remove()


def _push(inside: list[str], place: str) -> Callable[[nn.Module, Any], None]:
    return lambda module, args: inside.append(place)  # noqa: ARG005


def _pop(
    inside: list[str], before: dict[str, tuple[Tensor, int, Tensor]], prefix: str
) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that also compares the module's own buffers with what they were."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
        place, changed = inside.pop(), []
        for name, now in module.named_buffers(recurse=False):
            path = f"{prefix}.{name}" if prefix else name
            if path not in before:  # shared with a module that was listed first
                continue
            old, version, value = before[path]
            # batch_norm writes without counting a version
            same = now is old and now._version == version
            if not (same and torch.allclose(now, value, rtol=0, atol=0, equal_nan=True)):
                changed.append(name)
        if changed:
            raise UnsupportedStepError(
                f"{place} changes its buffers {', '.join(changed)} in every step; take a module "
                "without running statistics"
            )

    return hook
