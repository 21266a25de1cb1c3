"""Changes of PyTorch that the compiled engine must survive, simulated."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from robust_fin.training.engine import inductor


def _edit_wrapper(patch: pytest.MonkeyPatch, old: str, new: str) -> None:
    wrapper_text = inductor.wrapper_text

    def edited(step: inductor.TracedStep) -> str:
        text = wrapper_text(step)
        assert old in text
        return text.replace(old, new)

    patch.setattr(inductor, "wrapper_text", edited)


def rename_wrapper_function(patch: pytest.MonkeyPatch) -> None:
    """The wrapper's function has another name."""
    _edit_wrapper(patch, "def call(", "def run_graph(")


def rename_allocation(patch: pytest.MonkeyPatch) -> None:
    """The wrapper allocates by another function."""
    _edit_wrapper(patch, "= empty_strided_cpu(", "= allocate_cpu(")


def add_statement(patch: pytest.MonkeyPatch) -> None:
    """The wrapper has a statement of a new kind."""
    _edit_wrapper(
        patch, "        args.clear()\n", "        args.clear()\n        with guard(): pass\n"
    )


def rename_arguments(patch: pytest.MonkeyPatch) -> None:
    """The wrapper unpacks its arguments differently."""
    _edit_wrapper(patch, " = args\n", " = inputs\n")


def remove_method(patch: pytest.MonkeyPatch) -> None:
    """The method that the engine replaces is gone."""
    from torch._inductor.graph import GraphLowering

    patch.delattr(GraphLowering, "compile_to_module")


def change_codegen_result(patch: pytest.MonkeyPatch) -> None:
    """`codegen` returns another structure."""
    from torch._inductor.graph import GraphLowering

    patch.setattr(GraphLowering, "codegen", lambda self: SimpleNamespace(wrapper=""))  # noqa: ARG005


def change_builder_signature(patch: pytest.MonkeyPatch) -> None:
    """The C++ builder takes other arguments."""
    from torch._inductor.codecache import CppCodeCache

    patch.setattr(CppCodeCache, "load", lambda source_code: source_code)


def remove_library_name(patch: pytest.MonkeyPatch) -> None:
    """The built library has no `_name`."""
    from torch._inductor.codecache import CppCodeCache

    patch.setattr(CppCodeCache, "load", lambda *_, **__: object())


def remove_config_name(patch: pytest.MonkeyPatch) -> None:
    """An option of Inductor is gone."""
    patch.setattr(inductor, "OPTIONS", {**inductor.OPTIONS, "cpp.gone": True})


def remove_tracer(patch: pytest.MonkeyPatch) -> None:
    """`make_fx` has moved."""
    from torch.fx.experimental import proxy_tensor

    patch.delattr(proxy_tensor, "make_fx")


def break_cpp(patch: pytest.MonkeyPatch) -> None:
    """A function of the C interface is gone, so that the C++ does not compile."""
    patch.setattr(inductor, "PREFIX", inductor.PREFIX + "\n#error gone")
    # Inductor's own check of the processor, which follows the first error, takes 8 s
    compile_source = inductor.compile_source
    patch.setattr(
        inductor,
        "compile_source",
        lambda step, isa_ok: compile_source(step, isa_ok=True),  # noqa: ARG005
    )


Drift = Callable[[pytest.MonkeyPatch], None]
DRIFTS: tuple[Drift, ...] = (
    rename_wrapper_function,
    rename_allocation,
    add_statement,
    rename_arguments,
    remove_method,
    change_codegen_result,
    change_builder_signature,
    remove_library_name,
    remove_config_name,
    remove_tracer,
    break_cpp,
)
SAMPLE: tuple[Drift, ...] = (rename_wrapper_function, remove_method, change_builder_signature)
