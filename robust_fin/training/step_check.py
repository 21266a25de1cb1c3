"""Reasons why a net's step cannot be compiled, found by running it once, with their places."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from robust_fin.training.loop_trace import UnsupportedStepError, is_random

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
